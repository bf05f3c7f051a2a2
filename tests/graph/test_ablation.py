"""Declarations of ablations: which arms they mean, and every mistake found before anything runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.config import TrainerParams, check_params, tree_of
from lab.errors import LabError
from lab.graph.ablation import FILE, Ablation, Arm, Budget, Resources, find_ablation, read_ablation
from lab.graph.stages import parameters_of, stages_of

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "ablations" / "smoke" / "params.yaml"
TWO = {"connector": ["linear", "q_former"], "mix": ["understanding", "generation"]}
CLAIM = {
    "text": "Learned queries draw better",
    "metric": "generation/scene",
    "higher": {"connector": "q_former"},
    "lower": {"connector": "linear"},
}

Declare = Callable[..., Path]


@pytest.fixture(scope="session")
def base() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    return tree


@pytest.fixture
def declare(tmp_path: Path, base: dict[str, Any]) -> Declare:
    """Writes a declaration into a checkout of its own; keys given override a plain one."""
    folder = tmp_path / "experiments" / "ablations" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base, sort_keys=False))

    def write(text: str | None = None, **changes: Any) -> Path:
        tree = {"base": "params.yaml", "factors": TWO, **changes}
        (folder / FILE).write_text(text or yaml.safe_dump(tree, sort_keys=False))
        return folder / FILE

    return write


@pytest.fixture
def read(declare: Declare) -> Callable[..., Ablation]:
    return lambda text=None, **changes: read_ablation(declare(text, **changes))


@pytest.fixture
def refused(declare: Declare) -> Callable[..., str]:
    """The message, without the file's name in front."""

    def refuse(text: str | None = None, **changes: Any) -> str:
        path = declare(text, **changes)
        with pytest.raises(LabError) as caught:
            read_ablation(path)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(path))
        return message.removeprefix(f"{path}:").lstrip()

    return refuse


def arm(ablation: Ablation, name: str) -> Arm:
    return next(one for one in ablation.arms if one.name == name)


# -- arms ----------------------------------------------------------------------------------------------------


def test_every_combination_is_an_arm_with_one_connector_and_one_mix(read: Any, base: dict[str, Any]) -> None:
    ablation = read(seeds=[3, 1])
    assert [one.name for one in ablation.arms] == [
        "linear-understanding",
        "linear-generation",
        "q_former-understanding",
        "q_former-generation",
    ]
    for one in ablation.arms:
        word, mix = one.levels.values()
        assert one.params.connectors == [word]
        assert one.params.mixes == {mix: base["mixes"][mix]}
        assert one.touched == {"connector": {"connector"}, "mix": {"mix"}}
        assert (one.params.name, one.params.system, one.params.seed) == ("mine", "", base["seed"])
        assert one.params.settings == base["settings"]
    assert (ablation.name, ablation.seeds, ablation.aliases) == ("mine", (3, 1), ())
    assert [(one.name, one.levels, one.when) for one in ablation.factors] == [
        ("connector", ("linear", "q_former"), {}),
        ("mix", ("understanding", "generation"), {}),
    ]


def test_what_is_not_said(read: Any, base: dict[str, Any]) -> None:
    ablation = read(claim=None, arms=None, exclude=None)  # keys whose entries are all commented out
    assert (ablation.claim, ablation.budget, ablation.metrics) == (None, None, ())
    assert (ablation.seeds, ablation.replicate_from) == ((base["seed"],), "encoder")
    assert ablation.resources_of("align") == Resources()
    one = read(factors={"text_decoder.dim": [32, 64]}).arms[0].params
    assert (one.connectors, list(one.mixes)) == (
        base["connectors"][:1],
        ["understanding"],
    )  # the base's first


def test_a_level_sets_whatever_it_names(read: Any) -> None:
    ablation = read(
        factors={
            "size": {"small": {}, "large": {"text_decoder.dim": 64, "stages.instruct.warmup": 2}},
            "length": {"key": "stages.align.steps", "levels": {"short": 3, "long": 6}},
            "trained": {
                "key": "stages.align.trainable",
                "levels": {"one": ["connector"], "both": ["connector", "visual_head"]},
            },
        }
    )
    params = arm(ablation, "large-long-one").params
    assert params.spec("text_decoder", "llama")["dim"] == 64
    assert (params.stages.instruct.warmup, params.stages.align.steps) == (2, 6)
    assert params.stages.align.trainable == ["connector"]
    assert arm(ablation, "large-long-one").touched == {
        "size": {"settings.text_decoder.llama.dim", "stages.instruct.warmup"},
        "length": {"stages.align.steps"},
        "trained": {"stages.align.trainable"},
    }
    assert arm(ablation, "small-long-one").touched["size"] == frozenset()


def test_values_name_levels(read: Any) -> None:
    factors = {
        "text_decoder.dim": [32, 64],
        "visual_head.hide": [0.5, 1],
        "stages.align.learning_rate.connector": [1e-5, 0.0015],
        "text_decoder.tie_embeddings": [True, False],
        "bins": {"key": "world.locations", "levels": [0, 8]},
    }
    assert [one.levels for one in read(factors=factors).factors] == [
        ("dim32", "dim64"),
        ("hide0_5", "hide1"),
        ("connector1em05", "connector0_0015"),
        ("tie_embeddings_true", "tie_embeddings_false"),
        ("locations0", "locations8"),
    ]


def test_a_level_that_takes_a_part_away_has_a_name(refused: Any) -> None:
    message = refused(factors={"visual_head": ["regression", None]})
    assert "arm no_visual_head: stages.align.trainable: visual_head, but there is no visual_head" in message
    assert "arm regression" not in message


@pytest.mark.parametrize("order", [1, -1])
def test_words_come_before_settings_of_parts(read: Any, base: dict[str, Any], order: int) -> None:
    factors = {
        "queries": {"key": "connector.num_queries", "levels": [5, 7], "when": {"connector": "q_former"}},
        "connector": ["linear", "q_former"],
        "layers": {"one": {"encoder.dim": 16}, "other": {"encoder": "patches", "encoder.dim": 24}},
    }
    ablation = read(factors=dict(list(factors.items())[::order]))
    name = "-".join(["num_queries7", "q_former", "other"][::order])
    params = arm(ablation, name).params
    assert params.settings["connector"]["q_former"] == {
        **base["settings"]["connector"]["q_former"],
        "num_queries": 7,
    }
    assert params.settings["encoder"]["patches"] == {**base["settings"]["encoder"]["patches"], "dim": 24}
    assert params.settings["encoder"]["vit"] == base["settings"]["encoder"]["vit"]
    assert arm(ablation, name).touched == {
        "queries": {"settings.connector.q_former.num_queries"},
        "connector": {"connector"},
        "layers": {"encoder", "settings.encoder.patches.dim"},
    }


def test_mixes_are_named_after_their_level(read: Any, base: dict[str, Any]) -> None:
    factors = {
        "mix": {"reads": "understanding", "even": {"vqa": 1, "text_to_image": 1}},
        "mix.caption": [0.5, 3],
    }
    ablation = read(factors=factors)
    assert [one.params.mixes for one in ablation.arms] == [
        {"reads": {**base["mixes"]["understanding"], "caption": 0.5}},
        {"reads": {**base["mixes"]["understanding"], "caption": 3.0}},
        {"even": {"vqa": 1.0, "text_to_image": 1.0, "caption": 0.5}},
        {"even": {"vqa": 1.0, "text_to_image": 1.0, "caption": 3.0}},
    ]
    assert ablation.arms[0].touched == {"mix": {"mix"}, "mix.caption": {"mix"}}
    shared = read(set={"mix": "generation"}, factors={"mix.vqa": [3, 4]}).arms[1].params
    assert shared.mixes == {"generation": {**base["mixes"]["generation"], "vqa": 4.0}}
    own = {"mixes.mine.vqa": 1, "mixes.mine.caption": 2}
    assert read(set=own, factors={"mix": ["mine", "generation"]}).arms[0].params.mixes == {
        "mine": {"vqa": 1.0, "caption": 2.0}
    }


def test_the_mix_and_losses_of_a_stage_are_replaced_as_a_whole(read: Any) -> None:
    ablation = read(
        factors={
            "stages.align.mix": {"a": {"vqa": 1}, "b": {"caption": 2, "vqa": 1}},
            "losses": {
                "key": "stages.encoder.losses",
                "levels": {"c": {"region": 1.0}, "d": {"caption": 1.0}},
            },
        }
    )
    params = arm(ablation, "b-d").params
    assert params.stages.align.mix == {"caption": 2.0, "vqa": 1.0}
    assert params.stages.encoder.losses == {"caption": 1.0}


def test_words_of_yaml_1_1_are_text_and_numbers_are_numbers(read: Any) -> None:
    ablation = read(
        """
        base: params.yaml
        set: {stages.align.clip: 1e-1}
        factors:
          tied: {on: {text_decoder.tie_embeddings: true}, off: {text_decoder.tie_embeddings: false}}
        resources: {default: {time: 1:00:00}}
        """
    )
    assert [one.name for one in ablation.arms] == ["on", "off"]
    assert ablation.arms[0].params.stages.align.clip == 0.1
    assert ablation.resources_of("align").time == "1:00:00"


def test_a_conditional_factor_is_in_arms_of_its_condition_alone(read: Any) -> None:
    queries = {"key": "connector.num_queries", "levels": [5, 7], "when": {"connector": "q_former"}}
    ablation = read(factors={"connector": ["linear", "q_former", "mlp"], "queries": queries})
    assert [one.name for one in ablation.arms] == [
        "linear",
        "q_former-num_queries5",
        "q_former-num_queries7",
        "mlp",
    ]
    assert dict(ablation.factors[1].when) == {"connector": ("q_former",)}
    assert "queries" not in ablation.arms[0].touched


def test_exclusions_and_arms_change_the_design(read: Any) -> None:
    excluded = [{"connector": "linear", "mix": ["understanding", "generation"]}]
    kept = {"connector": "linear", "mix": "generation", "name": "baseline"}
    ablation = read(exclude=excluded, arms=[kept], claim=CLAIM)
    assert [one.name for one in ablation.arms] == [
        "q_former-understanding",
        "q_former-generation",
        "baseline",
    ]
    assert arm(ablation, "baseline").levels == {"connector": "linear", "mix": "generation"}
    listed = [{"mix": "generation", "connector": "linear"}, {"mix": "understanding", "connector": "q_former"}]
    assert [one.name for one in read(design="none", arms=listed).arms] == [
        "linear-generation",
        "q_former-understanding",
    ]


def test_a_fraction_names_what_it_cannot_tell_apart(read: Any) -> None:
    factors = {**TWO, "text_decoder.dim": [32, 64], "encoder.dim": [16, 24, 48]}
    ablation = read(factors=factors, design={"fraction": "1/2", "resolution": "III"})
    assert len(ablation.arms) == 4 * 3
    assert ablation.aliases == (
        "connector = mix*text_decoder.dim",
        "connector*mix = text_decoder.dim",
        "connector*text_decoder.dim = mix",
    )


@pytest.mark.parametrize("design", ["full", {"fraction": "1/2", "resolution": "III"}], ids=str)
def test_the_order_of_levels_changes_no_arm(read: Any, design: object) -> None:
    factors = {**TWO, "text_decoder.dim": [32, 64]}
    turned = {name: levels[::-1] for name, levels in factors.items()}
    one, other = (read(factors=given, design=design) for given in (factors, turned))
    assert {arm.name: arm for arm in one.arms} == {arm.name: arm for arm in other.arms}


def test_another_level_changes_no_arm_that_was_there(read: Any) -> None:
    before = read().arms
    after = read(factors={**TWO, "connector": ["mlp", "linear", "q_former"]}).arms
    assert len(after) == 6
    assert all(one in after for one in before)


def test_what_is_set_holds_for_every_arm_unless_a_level_says_otherwise(read: Any) -> None:
    common = {
        "stages.align.steps": 3,
        "stages.instruct.steps": 5,
        "encoder": "patches",
        "encoder.dim": 48,
        "connector.positions": True,
        "settings.connector.q_former.num_queries": 6,
        "seed": 4,
    }
    factors = {**TWO, "length": {"key": "stages.instruct.steps", "levels": {"short": 2, "long": 9}}}
    ablation = read(set=common, factors=factors)
    for one in ablation.arms:
        assert (one.params.stages.align.steps, one.params.seed) == (3, 4)
        assert one.params.spec("encoder", "patches")["dim"] == 48
        assert one.params.spec("connector", one.levels["connector"])["positions"] is True
        assert one.params.spec("connector", "q_former")["num_queries"] == 6
        assert one.params.stages.instruct.steps == {"short": 2, "long": 9}[one.levels["length"]]
    assert ablation.seeds == (4,)


# -- the base ------------------------------------------------------------------------------------------------


def test_the_base_may_be_a_published_system(read: Any, tmp_path: Path) -> None:
    systems = tmp_path / "experiments" / "systems"
    systems.mkdir()
    system = ROOT / "experiments" / "systems" / "llava.yaml"
    (systems / "llava.yaml").write_text(system.read_text())
    ablation = read(base="experiments/systems/llava.yaml", factors={"connector": ["linear", "mlp"]})
    params = arm(ablation, "mlp").params
    assert (params.name, params.system, list(params.mixes)) == ("mine", "", ["llava"])
    assert (
        params.stages.instruct.steps
        == yaml.safe_load(system.read_text())["small"]["stages"]["instruct"]["steps"]
    )


def test_a_file_beside_the_declaration_comes_first(read: Any, declare: Declare, base: dict[str, Any]) -> None:
    tree = deepcopy(base)
    tree["stages"]["align"]["steps"] = 77
    declare().with_name("params.yaml").write_text(yaml.safe_dump(tree))
    assert read().arms[0].params.stages.align.steps == 77


def test_a_recipe_without_an_encoder_is_replicated_from_what_it_trains_first(
    read: Any, base: dict[str, Any]
) -> None:
    recipe = [
        name for name in ("data", "judge", "text_decoder", "image_decoder", "align", "instruct", "evaluate")
    ]
    ablation = read(set={"recipe": recipe, "encoder": "patches"})
    assert ablation.replicate_from == "text_decoder"
    assert read(replicate_from="align").replicate_from == "align"


# -- the budget ----------------------------------------------------------------------------------------------


def test_a_budget_of_samples_becomes_steps_of_each_arm_s_batches(read: Any) -> None:
    batches = {"batch": {"key": "stages.instruct.batch_size", "levels": [4, 16]}}
    ablation = read(factors=batches, budget={"samples": 96, "stages": ["instruct", "encoder"]})
    assert ablation.budget == Budget("samples", 96, ("instruct", "encoder"))
    assert [one.params.stages.instruct.steps for one in ablation.arms] == [24, 6]
    assert {one.params.stages.encoder.steps for one in ablation.arms} == {96 // 16}
    assert {one.params.stages.align.steps for one in ablation.arms} == {
        read(factors=batches).arms[0].params.stages.align.steps
    }


def test_a_budget_of_steps_is_the_steps(read: Any) -> None:
    ablation = read(budget={"steps": 7})
    assert ablation.budget == Budget(
        "steps", 7, ("align", "instruct")
    )  # of the recipe, which has no pretrain
    for one in ablation.arms:
        assert (one.params.stages.align.steps, one.params.stages.instruct.steps) == (7, 7)


@pytest.mark.parametrize(("unit", "amount"), [("tokens", 5000), ("flops", 2.5e12), ("seconds", 0.5)])
def test_other_budgets_are_for_the_trainer(read: Any, unit: str, amount: float) -> None:
    ablation = read(budget={unit: amount, "stages": ["instruct"]})
    usual = read().arms[0].params.stages
    for one in ablation.arms:
        assert one.params.stages.instruct == replace(usual.instruct, budget={unit: amount})
        assert one.params.stages.align == usual.align


def test_parameters_without_a_budget_are_what_they_always_were(base: dict[str, Any]) -> None:
    params = check_params(base)
    given = {"connector": "linear", "mix": "generation"}

    def read_by(stage: str, budget: Mapping[str, float]) -> Any:
        section = replace(params.stages.instruct, budget=budget)  # type: ignore[type-var]
        changed = replace(params, stages=replace(params.stages, instruct=section))
        return parameters_of(changed, stages_of(changed)[stage], given)[f"stages.{stage}"]

    assert read_by("instruct", {}) == base["stages"]["instruct"]
    assert read_by("instruct", {"tokens": 9}) == {**base["stages"]["instruct"], "budget": {"tokens": 9}}
    assert tree_of(params)["stages"]["align"] == base["stages"]["align"]
    assert check_params(tree_of(params)) == replace(params, trainer=TrainerParams())


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"token": 3}, "stages.instruct.budget: no unit 'token' (did you mean 'tokens'?)"),
        ({"tokens": 0}, "'stages.instruct.budget.tokens' must be more than 0, not 0"),
        ({"tokens": float("nan")}, "'stages.instruct.budget.tokens' must be more than 0, not nan"),
        ({"tokens": "many"}, "'stages.instruct.budget.tokens' must be float, not 'many'"),
        ({"tokens": 3, "flops": 4}, "stages.instruct.budget: one unit, not tokens and flops"),
        (3, "'stages.instruct.budget' must be a mapping, not 3"),
    ],
)
def test_a_wrong_budget_of_a_stage_is_named(base: dict[str, Any], budget: object, expected: str) -> None:
    tree = deepcopy(base)
    tree["stages"]["instruct"]["budget"] = budget
    with pytest.raises(LabError) as caught:
        check_params(tree)
    assert expected in str(caught.value)


# -- claim, metrics, resources -------------------------------------------------------------------------------


def test_a_claim_may_rest_on_a_conditional_factor(read: Any) -> None:
    queries = {"key": "connector.num_queries", "levels": [5, 7], "when": {"connector": "q_former"}}
    claim = {**CLAIM, "higher": {"connector": "q_former", "queries": "num_queries7"}}
    assert read(factors={**TWO, "queries": queries}, claim=claim).claim.higher == claim["higher"]


def test_a_claim_is_read_as_it_stands(read: Any) -> None:
    claim = read(claim={**CLAIM, "margin": 0.02}).claim
    assert vars(claim) == {**CLAIM, "margin": 0.02}
    assert read(claim=CLAIM).claim.margin == 0.0


@pytest.mark.parametrize(
    "metric",
    ["understanding/vqa", "understanding/vqa/colour", "understanding/caption_things", "reconstruction/psnr"],
)
def test_metrics_of_an_evaluation_are_known(read: Any, metric: str) -> None:
    assert read(metrics=[metric]).metrics == (metric,)


def test_all_metrics_that_an_evaluation_gives_are_known(read: Any, tiny_pipeline: Path) -> None:
    files = [*tiny_pipeline.glob("metrics/evaluate/*.json")]
    given = [name for file in files for name in yaml.safe_load(file.read_text())["metrics"]]
    names = [
        name for name in given if name.partition("/")[0] in ("understanding", "generation", "reconstruction")
    ]
    assert len(names) > 10
    assert read(metrics=names).metrics == tuple(names)


def test_resources_of_a_stage_are_the_default_s_and_its_own(read: Any) -> None:
    ablation = read(
        resources={
            "instruct": {"tasks": 2, "strategy": "ddp", "time": "1-12", "preflight": "off"},
            "default": {"cpus": 2, "memory": "2G", "time": 30},
        }
    )
    assert ablation.resources_of("align") == Resources(cpus=2, memory="2G", time="30")
    assert ablation.resources_of("instruct") == Resources(
        cpus=2, memory="2G", time="1-12", tasks=2, strategy="ddp", preflight="off"
    )


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # keys
        ({"sedes": [1]}, "unknown key 'sedes' (did you mean 'seeds'?)"),
        ({"base": None}, "missing key 'base'"),
        ({"base": "param.yaml"}, "base: no file 'param.yaml'"),
        ({"base": "param.yaml"}, "(did you mean 'params.yaml'?)"),
        ({"base": 3}, "base: expected a file, not 3"),
        ({"base": "experiments"}, "base: no file 'experiments'"),
        # set
        (
            {"set": {"stages.instruct.step": 3}},
            "set: unknown key 'stages.instruct.step' (did you mean 'steps'?)",
        ),
        ({"set": {"stages.pretrain.steps": 3}}, "set: unknown key 'stages.pretrain'"),
        ({"set": {"stages.instruct": {"steps": 3}}}, "takes no mapping; write 'stages.instruct.steps'"),
        ({"set": {"connectors": ["mlp"]}}, "set: 'connectors' cannot be set here: write connector"),
        ({"set": {"name": "mine"}}, "set: 'name' cannot be set here: the folder names an ablation"),
        ({"set": {"encoder": "vti"}}, "set: no encoder 'vti' (did you mean 'vit'?)"),
        ({"set": {"stages.align.steps": "many"}}, "every arm: 'stages.align.steps' must be int, not 'many'"),
        ({"set": 3}, "set: expected a mapping of dotted keys, not 3"),
        # factors and levels
        ({"factors": None}, "factors: expected a mapping of names to levels, not None"),
        ({"factors": {"width": [3, 4]}}, "factors.width: 'width' is no parameter; name one with `key`"),
        ({"factors": {"conector": ["linear", "mlp"]}}, "(did you mean 'connector'?)"),
        ({"factors": {"seed": [3, 4]}}, "factors.seed: 'seed' cannot be set here: seeds lists them"),
        ({"factors": {"a": {"a0": {"name": "x"}, "a1": {}}}}, "factors.a.a0: 'name' cannot be set here"),
        ({"factors": {"a": {"a0": {"mixes.x.vqa": 1}, "a1": {}}}}, "write mix, or mix.TASK"),
        ({"factors": {"a-b": {"a0": {}, "a1": {}}}}, "factors.a-b: a factor's name is of letters"),
        ({"factors": {"name": {"a0": {}, "a1": {}}}}, "factors.name: a factor's name is of letters"),
        ({"factors": {"a": 3}}, "factors.a: expected a list or a mapping of levels, not 3"),
        (
            {"factors": {"a": {"levels": [3, 4], "kye": "encoder.dim"}}},
            "unknown key 'factors.a.kye' (did you mean 'key'?)",
        ),
        ({"factors": {"a": {"levels": [3, 4], "key": 3}}}, "factors.a.key: expected a dotted key, not 3"),
        (
            {"factors": {"a": {"key": "encoder.dim"}}},
            "factors.a: expected a list or a mapping of levels, not None",
        ),
        (
            {"factors": {"connector": ["linear", "q_fromer"]}},
            "factors.connector.q_fromer: no connector 'q_fromer' (did you mean 'q_former'?)",
        ),
        ({"factors": {"connector": ["linear", ["mlp"]]}}, "factors.connector: ['mlp'] has no name"),
        ({"factors": {"connector": ["linear", "linear"]}}, "factors.connector: level 'linear' twice"),
        (
            {"factors": {"stages.instruct.precision": ["32-true", "bf16-mixed"]}},
            "level '32-true' is to be a letter, then letters",
        ),
        (
            {"factors": {"a": {"s1": {}, "a1": {}}}},
            "factors.a: level 's1' means something else in a node's name",
        ),
        ({"factors": {"a": {"all": {}, "a1": {}}}}, "level 'all' means something else"),
        (
            {"factors": {**TWO, "a": {"linear": {}, "a1": {}}}},
            "factors.a: level 'linear' is one of connector too",
        ),
        (
            {"factors": {"mix": ["understanding", "genration"]}},
            "factors.mix.genration: no mix 'genration' (did you mean 'generation'?)",
        ),
        (
            {"factors": {"mix": {"a": "generation", "b": {"vqaa": 1}}}},
            "arm b: mixes.b: no task 'vqaa' (did you mean 'vqa'?)",
        ),
        ({"factors": {"encoder.dmi": [16, 32]}}, "encoder vit: no setting 'dmi' (did you mean 'dim'?)"),
        (
            {"factors": {"connector": ["linear", "q_former"], "connector.num_queries": [3, 4]}},
            "arm linear-num_queries3 and 1 more: connector linear: no setting 'num_queries'",
        ),
        (
            {"factors": {"a": {"a0": {"stages.align": {"steps": 3}}, "a1": {}}}},
            "factors.a.a0: 'stages.align' takes no mapping",
        ),
        (
            {"factors": {"encoder.dim": [16, 32], "b": {"b0": {"encoder.dim": 8}, "b1": {}}}},
            "factors.encoder.dim and factors.b both set 'settings.encoder.vit.dim'",
        ),
        ({"factors": {"connector": []}}, "expected a list or a mapping of levels, not []"),
        (
            {"factors": {**TWO, "settings.connector.mlp.positions": [True, False]}},
            "understanding-positions_false (and 3 more such groups) are the same in all that is read",
        ),
        ({"factors": {"mix": {"a": "generation", "b": "generation"}}}, "arms a and b are the same"),
        # conditions
        (
            {"factors": {**TWO, "q": {"levels": {"a": {}, "b": {}}, "when": {"conector": "linear"}}}},
            "factors.q.when: no factor 'conector' (did you mean 'connector'?)",
        ),
        (
            {"factors": {**TWO, "q": {"levels": {"a": {}, "b": {}}, "when": {"connector": "linaer"}}}},
            "factors.q.when: connector has no level 'linaer' (did you mean 'linear'?)",
        ),
        (
            {"factors": {**TWO, "q": {"levels": {"a": {}, "b": {}}, "when": "linear"}}},
            "factors.q.when: expected a mapping of factors to levels, not 'linear'",
        ),
        (
            {"factors": {**TWO, "q": {"levels": {"a": {}, "b": {}}, "when": {"q": "a"}}}},
            "conditions in a circle: q -> q",
        ),
        (
            {
                "factors": {
                    "connector": ["linear", "mlp"],
                    "p": {"levels": {"a": {}, "b": {}}, "when": {"connector": "mlp"}},
                    "q": {"levels": {"c": {}, "d": {}}, "when": {"connector": "linear", "p": "a"}},
                }
            },
            "factors.q.when: never holds",
        ),
        # design, arms, exclusions
        (
            {"design": "ful"},
            "expected full, none or {fraction: 1/4, resolution: III}, not 'ful' (did you mean 'full'?)",
        ),
        (
            {"design": {"fraction": "1/3", "resolution": "III"}},
            "design.fraction: expected 1/2, 1/4, 1/8 and so on, not '1/3'",
        ),
        ({"design": {"fraction": "1/0", "resolution": "III"}}, "design.fraction: expected"),
        ({"design": {"fraction": 1, "resolution": "III"}}, "design.fraction: expected"),
        ({"design": {"fraction": "1/2", "resolution": "I"}}, "design.resolution: expected one of III, IV"),
        ({"design": {"fraction": "1/2"}}, "design.resolution: expected one of III, IV"),
        ({"design": {"fraction": "1/2", "resolution": "III", "factors": 3}}, "unknown key 'design.factors'"),
        ({"design": {"fraction": "1/2", "resolution": "III"}}, "1/2 of 2 factors of two levels"),
        ({"design": "none"}, "arms: there are none, and design is none"),
        ({"arms": {"connector": "linear"}}, "arms: expected a list of mappings"),
        ({"arms": ["linear"]}, "arms[0]: expected a mapping of factors to levels, not 'linear'"),
        ({"arms": [{"connector": "linear"}]}, "arms[0]: no level of mix; have understanding, generation"),
        ({"arms": [{"conector": "linear"}]}, "arms[0]: no factor 'conector' (did you mean 'connector'?)"),
        ({"arms": [{"connector": "mlp", "mix": "generation"}]}, "arms[0]: connector has no level 'mlp'"),
        (
            {"arms": [{"connector": ["linear"], "mix": "generation"}]},
            "arms[0]: one level of connector, not a list",
        ),
        (
            {"arms": [{"connector": "linear", "mix": "generation"}]},
            "arms[0]: 'linear-generation' is the same arm",
        ),
        (
            {"arms": [{"connector": "linear", "mix": "generation", "name": "a-b"}]},
            "arms[0].name: expected a letter",
        ),
        (
            {
                "design": "none",
                "arms": [
                    {"connector": "linear", "mix": "generation", "name": "a"},
                    {"connector": "q_former", "mix": "understanding", "name": "a"},
                ],
            },
            "arms[1].name: 'a' is another arm's name",
        ),
        (
            {
                "factors": {**TWO, "q": {"levels": {"a": {}, "b": {}}, "when": {"connector": "linear"}}},
                "arms": [{"connector": "q_former", "mix": "generation", "q": "a"}],
            },
            "arms[0]: q, though its condition does not hold",
        ),
        ({"exclude": {"connector": "linear"}}, "exclude: expected a list of mappings"),
        ({"exclude": [{"connector": "mlp"}]}, "exclude[0]: connector has no level 'mlp'"),
        (
            {
                "design": "none",
                "arms": [
                    {"connector": "linear", "mix": "generation"},
                    {"connector": "q_former", "mix": "understanding"},
                ],
                "exclude": [{"connector": "linear"}],
            },
            "exclude[0]: matches no arm of the design",
        ),
        ({"exclude": [{"connector": ["linear", "q_former"]}]}, "exclude: leaves no arm"),
        (
            {"exclude": [{"connector": "linear"}]},
            "factors.connector: no arm varies it; it is always 'q_former'",
        ),
        # seeds and replicates
        ({"seeds": [1, 1]}, "seeds: expected a list of different whole numbers from 0 on, not [1, 1]"),
        ({"seeds": [-1]}, "seeds: expected"),
        ({"seeds": [True]}, "seeds: expected"),
        ({"seeds": []}, "seeds: expected"),
        ({"seeds": 3}, "seeds: expected"),
        (
            {"replicate_from": "aling"},
            "replicate_from: no stage 'aling' in every recipe (did you mean 'align'?)",
        ),
        ({"replicate_from": "pretrain"}, "replicate_from: no stage 'pretrain' in every recipe"),
        # budget
        ({"budget": {"sample": 3}}, "unknown key 'budget.sample' (did you mean 'samples'?)"),
        (
            {"budget": {"stages": ["instruct"]}},
            "budget: expected one of samples, steps, tokens, flops, seconds, not none",
        ),
        (
            {"budget": {"samples": 16, "steps": 1}},
            "budget: expected one of samples, steps, tokens, flops, seconds, not samples and steps",
        ),
        ({"budget": {"steps": 0}}, "budget.steps: expected a whole number above 0, not 0"),
        ({"budget": {"tokens": 1.5}}, "budget.tokens: expected a whole number above 0, not 1.5"),
        ({"budget": {"seconds": "long"}}, "budget.seconds: expected a number above 0, not 'long'"),
        (
            {"budget": {"samples": 100}},
            "budget.samples: 100 are no whole number of batches of 8; nearest: 96 and 104",
        ),
        ({"budget": {"samples": 7}}, "batches of 8; nearest: 8"),
        (
            {"budget": {"steps": 3, "stages": ["instrct"]}},
            "budget.stages: no stage 'instrct' trains here (did you mean 'instruct'?)",
        ),
        ({"budget": {"steps": 3, "stages": ["evaluate"]}}, "budget.stages: no stage 'evaluate' trains here"),
        (
            {"budget": {"steps": 3, "stages": "instruct"}},
            "budget.stages: expected a list of stages, not 'instruct'",
        ),
        (
            {"budget": {"steps": 3}, "factors": {"stages.align.steps": [3, 4]}},
            "factors.stages.align.steps.steps3: sets 'stages.align.steps', which follows from the budget",
        ),
        ({"budget": 3}, "budget: expected a mapping of a unit to an amount, not 3"),
        # claim and metrics
        ({"claim": "better"}, "claim: expected a mapping of text, metric, higher and lower"),
        (
            {"claim": {**CLAIM, "metric": "generation/scenes"}},
            "claim.metric: no metric 'generation/scenes' (did you mean 'generation/scene'?)",
        ),
        ({"claim": {**CLAIM, "margni": 1}}, "unknown key 'claim.margni' (did you mean 'margin'?)"),
        ({"claim": {**CLAIM, "margin": -1}}, "claim.margin: expected a number of at least 0, not -1"),
        ({"claim": {**CLAIM, "text": 3}}, "claim.text: expected a sentence, not 3"),
        (
            {"claim": {"text": "x"}},
            "missing key 'claim.metric'; missing key 'claim.higher'; missing key 'claim.lower'",
        ),
        (
            {"claim": {**CLAIM, "higher": {"connector": "linaer"}}},
            "claim.higher: connector has no level 'linaer' (did you mean 'linear'?)",
        ),
        (
            {"claim": {**CLAIM, "lower": {"conector": "linear"}}},
            "claim.lower: no factor 'conector' (did you mean 'connector'?)",
        ),
        (
            {"claim": {**CLAIM, "lower": {"connector": ["linear"]}}},
            "claim.lower: one level of connector, not a list",
        ),
        (
            {"claim": {**CLAIM, "lower": {"connector": "q_former"}}},
            "claim: higher and lower differ in no factor: arm q_former-understanding is on both sides",
        ),
        (
            {"claim": {**CLAIM, "lower": {"mix": "generation"}}},
            "claim: higher and lower differ in no factor: arm q_former-generation is on both sides",
        ),
        (
            {
                "claim": CLAIM,
                "factors": {**TWO, "connector": ["linear", "q_former", "mlp"]},
                "exclude": [{"connector": "linear"}],
            },
            "claim.lower: no arm has linear",
        ),
        (
            {
                "claim": CLAIM,
                "design": "none",
                "arms": [
                    {"connector": "linear", "mix": "generation"},
                    {"connector": "q_former", "mix": "understanding"},
                ],
            },
            "claim: no arm of higher has one of lower to compare it with, the same in mix",
        ),
        (
            {"claim": {**CLAIM, "metric": "understanding/grounding"}},
            "claim.metric: arm q_former-understanding has no understanding/grounding: world.locations is 0",
        ),
        (
            {"metrics": ["understanding/vqaa"]},
            "metrics[0]: no metric 'understanding/vqaa' (did you mean 'understanding/vqa'?)",
        ),
        ({"metrics": ["vqa"]}, "metrics[0]: no metric 'vqa'"),
        ({"metrics": [3]}, "metrics[0]: no metric '3'"),
        ({"metrics": "understanding/vqa"}, "metrics: expected a list, not 'understanding/vqa'"),
        ({"metrics": ["understanding/vqa", "understanding/vqa"]}, "metrics[1]: 'understanding/vqa' twice"),
        (
            {"metrics": ["understanding/grounding_iou"]},
            "no arm has understanding/grounding_iou: world.locations is 0",
        ),
        (
            {"metrics": ["understanding/by_example"]},
            "no arm has understanding/by_example: no mix has the task 'by_example'",
        ),
        # resources
        ({"resources": {"instrct": {}}}, "resources: no stage 'instrct' (did you mean 'instruct'?)"),
        (
            {"resources": {"default": {"cpu": 1}}},
            "unknown key 'resources.default.cpu' (did you mean 'cpus'?)",
        ),
        (
            {"resources": {"default": {"cpus": 0}}},
            "resources.default.cpus: expected a whole number of at least 1, not 0",
        ),
        (
            {"resources": {"default": {"gpus": -1}}},
            "resources.default.gpus: expected a whole number of at least 0, not -1",
        ),
        (
            {"resources": {"default": {"memory": 2000}}},
            "resources.default.memory: expected a size such as 500M or 2G, not 2000",
        ),
        (
            {"resources": {"default": {"time": "1h"}}},
            "resources.default.time: expected minutes, hours:minutes:seconds or days-hours",
        ),
        ({"resources": {"default": {"time": "0:00"}}}, "resources.default.time: expected minutes"),
        (
            {"resources": {"default": {"strategy": "dpp"}}},
            "expected one of auto, ddp, fsdp, not 'dpp' (did you mean 'ddp'?)",
        ),
        ({"resources": {"default": 3}}, "resources.default: expected a mapping of cpus"),
        ({"resources": ["default"]}, "resources: expected a mapping of stages, not ['default']"),
    ],
)
def test_a_mistake_is_named(refused: Any, changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(**changes)


def test_all_mistakes_are_named_at_once_and_each_only_once(refused: Any) -> None:
    message = refused(
        sedes=[1],
        set={"stages.align.step": 3, "stages.align.warmup": "long"},
        factors={**TWO, "width": {"narrow": {"text_decoder.dmi": 1}, "wide": {"text_decoder.dim": 64}}},
        exclude=[{"connector": "linear", "mix": "understanding", "width": "wide"}],
        seeds=[1, 1],
        claim={**CLAIM, "metric": "generation/scenes"},
        budget={"samples": 100},
        metrics=["understanding/vqaa"],
        replicate_from="aling",
        resources={"instruct": {"memory": "much"}},
    )
    for expected in (
        "unknown key 'sedes'",
        "set: unknown key 'stages.align.step'",
        "every arm: 'stages.align.warmup' must be int, not 'long'",
        "seeds: expected",
        "claim.metric: no metric",
        "budget.samples: 100",
        "metrics[0]: no metric",
        "replicate_from: no stage",
        "resources.instruct.memory: expected",
    ):
        assert message.count(expected) == 1, expected


def test_mistakes_that_hide_the_arms_do_not_hide_other_mistakes(refused: Any) -> None:
    message = refused(
        exclude=[{"connector": ["linear", "q_former"]}],
        set={"stages.align.step": 3},
        factors={**TWO, "size": {"small": {"worlds.grid": 3}, "large": {"encoder": "vti"}}},
        budget={"steps": 3, "stages": ["instrct"]},
        replicate_from="aling",
    )
    for expected in (
        "leaves no arm",
        "'stages.align.step'",
        "'worlds'",
        "'vti'",
        "'instrct'",
        "'aling'",
    ):
        assert expected in message


def test_a_broken_base_is_named_with_its_own_mistakes(
    refused: Any, tmp_path: Path, base: dict[str, Any]
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**base, "sede": 1}))
    message = refused(seeds=[1, 1])
    assert f"base: {tmp_path / 'params.yaml'}: unknown key 'sede' (did you mean 'seed'?)" in message
    assert "seeds: expected" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: params.yaml\nfactors: {a: [1\nseeds: [1]\n", ":3: while parsing a flow sequence"),
        ("base: params.yaml\n\tfactors: 3\n", ":2: while scanning"),
        ("- 1\n", ": expected a mapping of claim, base"),
        ("", ": expected a mapping of claim, base"),
        ("base: !!python/object/apply:os.getcwd []\n", ":1: could not determine a constructor"),
        (
            "base: params.yaml\nbase: params.yaml\nfactors:\n  encoder: [vit, vq]\n  encoder: [vq]\n",
            ": line 2: key 'base' a second time; line 5: key 'encoder' a second time",
        ),
    ],
)
def test_broken_yaml_is_named_with_its_line(declare: Declare, text: str, expected: str) -> None:
    path = declare(text or "# nothing\n")
    with pytest.raises(LabError) as caught:
        read_ablation(path)
    assert f"{path}{expected}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_are_called_as_from_here(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=r"^experiments/ablations/mine/ablation\.yaml: seeds"):
        read_ablation(declare(seeds=3))
    with pytest.raises(LabError, match=r"other\.yaml: no such file"):
        read_ablation(Path("other.yaml"))


JUNK = st.sampled_from(
    [None, 3, -1, 0.5, "", "x", "mix", "linear", True, [], {}, ["x"], [[1]], {"x": 1}, {"x": {"y": [2]}}]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_there_is_read_or_refused_in_one_line(declare: Declare, data: st.DataObject) -> None:
    tree: Any = {
        "claim": deepcopy(CLAIM),
        "base": "params.yaml",
        "set": {"stages.align.steps": 3, "connector.positions": True},
        "factors": {
            **deepcopy(TWO),
            "size": {"small": {}, "large": {"text_decoder.dim": 64}},
            "more": {"key": "connector.num_queries", "levels": [3, 5], "when": {"connector": "q_former"}},
        },
        "design": {"fraction": "1/2", "resolution": "III"},
        "exclude": [{"connector": "linear", "size": ["small"]}],
        "arms": [{"connector": "linear", "mix": "generation", "size": "large", "name": "one"}],
        "seeds": [0, 1],
        "budget": {"samples": 96, "stages": ["instruct"]},
        "metrics": ["understanding/vqa"],
        "resources": {"default": {"cpus": 1, "time": "30"}},
    }
    for _ in range(data.draw(st.integers(1, 2))):
        place: Any = tree
        while True:
            if not isinstance(place, (dict, list)) or not place:
                break
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
                place[key] = deepcopy(data.draw(JUNK))
                break
            place = place[key]
    path = declare(**tree)
    message = ""
    try:
        read_ablation(path)
    except LabError as error:
        message = str(error)
    assert "\n" not in message


# -- finding, and being quick --------------------------------------------------------------------------------


def test_an_ablation_is_found_by_name_folder_or_file(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = declare()
    monkeypatch.chdir(path.parent)  # anywhere in a checkout
    assert find_ablation("mine") == path
    monkeypatch.chdir(tmp_path)
    assert find_ablation("experiments/ablations/mine") == path
    assert find_ablation(str(path)) == path
    with pytest.raises(LabError, match=r"no ablation 'mien' \(did you mean 'mine'\?\); have mine"):
        find_ablation("mien")


def test_a_hundred_arms_are_read_in_a_moment(declare: Declare) -> None:
    factors = {
        "connector": ["linear", "q_former", "perceiver", "mlp"],
        "mix": ["understanding", "generation"],
        "text_decoder.dim": [32, 64, 96],
        "stages.instruct.warmup": [1, 2, 3, 4],
    }
    path = declare(factors=factors, seeds=[0, 1, 2])
    start = time.process_time()
    assert len(read_ablation(path).arms) == 96
    assert time.process_time() - start < 3  # about 0.3 s; without reading every part's file once, 2 s more


def test_an_edited_part_is_seen_at_the_next_reading(
    read: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "connectors"
    own.mkdir(parents=True)
    text = (ROOT / "components" / "connectors" / "linear.py").read_text()
    (own / "mine.py").write_text(text)
    monkeypatch.setenv("LAB_COMPONENTS", str(tmp_path / "own"))
    factors = {"connector": ["linear", "mine"], "connector.positions": [True, False]}
    assert len(read(factors=factors).arms) == 4
    (own / "mine.py").write_text(text.replace("positions", "places"))
    assert "arm mine-positions_true and 1 more: connector mine: no setting 'positions'" in refused(
        factors=factors
    )


def test_reading_imports_nothing_heavy(declare: Declare) -> None:
    code = (
        "import sys, pathlib; from lab.graph.ablation import read_ablation; "
        "read_ablation(pathlib.Path(sys.argv[1])); "
        "print(*{'torch', 'dvc', 'mlflow', 'numpy', 'matplotlib'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(declare())], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# -- what the repository declares ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob(f"experiments/ablations/*/{FILE}")), ids=lambda path: path.parent.name
)
def test_declared_ablations_are_sound(path: Path) -> None:
    ablation = read_ablation(path)
    assert ablation.claim is not None
    assert ablation.metrics


def test_the_example_is_what_it_says() -> None:
    ablation = read_ablation(ROOT / "experiments" / "ablations" / "connectors_by_mix" / FILE)
    assert [one.levels for one in ablation.factors] == [
        ("linear", "q_former"),
        ("understanding", "generation"),
    ]
    assert (len(ablation.arms), ablation.seeds, ablation.replicate_from) == (4, (0, 1, 2), "align")
    assert {one.params.stages.instruct.steps for one in ablation.arms} == {300}


def test_a_factor_may_have_one_level_which_all_arms_share(declare: Declare) -> None:
    text = "base: params.yaml\nfactors: {connector: [linear], mix: [understanding, generation]}\n"
    assert [arm.name for arm in read_ablation(declare(text)).arms] == [
        "linear-understanding",
        "linear-generation",
    ]


def test_the_docs_declare_what_can_be_read(declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    text = (ROOT / "docs" / "ablations.md").read_text().split("## Declare", 1)[1].split("\n## ", 1)[0]
    whole, *parts = [block.split("```", 1)[0] for block in text.split("```yaml\n")[1:]]
    assert len(read_ablation(declare(whole)).arms) == 4
    assert len(parts) == 5
    mixes = (
        "factors:\n  connector: [linear, q_former]\n  mix: {reads: understanding, even: {vqa: 1, edit: 1}}\n"
    )
    for part in parts:
        read_ablation(declare(f"base: params.yaml\n{'' if 'factors:' in part else mixes}{part}"))
    rows = [row.split("|")[1].strip(" `") for row in text.splitlines() if row.startswith("| `")]
    factors = [row for row in rows if row.partition(": ")[2].startswith(("[", "{"))]
    assert len(factors) == 9
    drawn = "set: {stages.align.trainable: [connector]}\n"
    for factor in factors:
        with_word = "" if factor.startswith("connector:") else "  connector: [linear, q_former]\n"
        path = declare(f"base: params.yaml\n{drawn}factors:\n{with_word}  {factor}\n")
        if "null" in factor:  # such an arm needs more than that
            with pytest.raises(LabError, match="no_visual_head"):
                read_ablation(path)
        else:
            assert len(read_ablation(path).arms) >= 2
