"""Small sizes of systems: what a declaration says goes on top of the base, and nothing else changes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import Params
from lab.errors import LabError
from lab.graph.small import small_params
from lab.graph.system import BASE, SYSTEMS, System, find, names, read_system

FILE = Path("mine.yaml")
DRAWING: dict[str, Any] = {
    "visual_head": "regression",
    "image_decoder": "transformer",
    "stages": {"instruct": {"trainable": ["connector", "text_decoder", "visual_head"]}},
}


def small(*overrides: str, **declared: Any) -> Params:
    """The parameters of a system that declares this."""
    return small_params(System("mine", "", "", (), declared, None), FILE, list(overrides))


def refused(*overrides: str, **declared: Any) -> str:
    with pytest.raises(LabError) as caught:
        small(*overrides, **declared)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def base() -> dict[str, Any]:
    return yaml.safe_load((SYSTEMS / f"{BASE}.yaml").read_text())


@pytest.mark.parametrize("name", names())
def test_a_declared_system_is_one_valid_arm(name: str) -> None:
    if (declared := yaml.safe_load(find(name).read_text()).get("small")) is None:
        pytest.skip("it has no small size")
    before = deepcopy(declared)
    params = small_params(System(name, "", "", (), declared, None), find(name), [])
    assert declared == before
    assert params.system == name
    assert len(params.connectors) == len(params.mixes) == 1


def test_what_is_not_said_is_the_base(base: dict[str, Any]) -> None:
    params = small()
    assert (params.system, params.words()) == ("mine", {role: base[role] for role in params.words()})
    assert params.connectors == base["connectors"]
    assert params.settings == base["settings"]
    assert params.mixes == {"mine": next(iter(base["mixes"].values()))}
    assert (params.targets, params.seed) == (base["targets"], base["seed"])
    assert params.recipe == ["data", "judge", "encoder", "text_decoder", "align", "instruct", "evaluate"]


# -- components ----------------------------------------------------------------------------------------------


def test_a_word_replaces_a_component_and_takes_the_base_s_settings_of_it(base: dict[str, Any]) -> None:
    params = small(connector="perceiver", encoder="patches")
    assert (params.connectors, params.encoder) == (["perceiver"], "patches")
    assert params.spec("connector", "perceiver") == {
        "name": "perceiver",
        **base["settings"]["connector"]["perceiver"],
    }
    assert params.spec("encoder", "patches") == {"name": "patches"}  # of which the base says nothing


def test_a_mapping_changes_settings_and_keeps_the_others(base: dict[str, Any]) -> None:
    params = small(
        connector={"name": "perceiver", "num_latents": 7}, text_decoder={"name": "llama", "dim": 64}
    )
    usual = base["settings"]["connector"]["perceiver"]
    assert params.settings["connector"]["perceiver"] == {**usual, "num_latents": 7}
    assert params.settings["connector"]["linear"] == base["settings"]["connector"]["linear"]
    assert params.settings["text_decoder"]["llama"] == {
        **base["settings"]["text_decoder"]["llama"],
        "dim": 64,
    }


def test_null_leaves_a_component_out() -> None:
    assert small(**DRAWING).words().keys() >= {"visual_head", "image_decoder"}
    params = small(visual_head=None, image_decoder=None)
    assert (params.visual_head, params.image_decoder) == (None, None)
    for role in ("encoder", "connector", "text_decoder", "fusion"):
        assert f"{FILE}: small.{role}: expected a word, or a mapping with 'name', not None" in refused(
            **{role: None}
        )
    assert "small.encoder: expected a word, or a mapping with 'name'" in refused(encoder={"dim": 32})


def test_unknown_words_and_settings_are_named() -> None:
    assert "did you mean 'q_former'?" in refused(connector="q_fromer")
    assert "did you mean 'num_latents'?" in refused(connector={"name": "perceiver", "num_latent": 7})


# -- stages --------------------------------------------------------------------------------------------------


def test_a_stage_that_is_null_is_left_out() -> None:
    params = small(stages={"align": None, "encoder": None})
    assert params.recipe == ["data", "judge", "text_decoder", "instruct", "evaluate"]


def test_stages_that_are_seldom_needed_come_when_they_are_named() -> None:
    params = small(connector="q_former", stages={"represent": {}, "pretrain": {"steps": 7}})
    order = ["encoder", "text_decoder", "represent", "align", "pretrain", "instruct"]
    assert params.recipe == ["data", "judge", *order, "evaluate"]
    assert params.fitted("pretrain").steps == 7


def test_the_image_decoder_s_stage_comes_with_an_image_decoder() -> None:
    assert "image_decoder" not in small().recipe
    recipe = small(**DRAWING).recipe
    assert recipe.index("text_decoder") < recipe.index("image_decoder") < recipe.index("align")


def test_a_stated_recipe_is_the_recipe() -> None:
    order = ["data", "judge", "encoder", "text_decoder", "instruct", "evaluate"]
    assert small(recipe=order).recipe == order


def test_sections_merge_but_a_mix_and_losses_are_replaced(base: dict[str, Any]) -> None:
    changed = {"mix": {"caption": 2}, "learning_rate": {"connector": 1.0e-4}, "steps": 5}
    params = small(stages={"align": changed, "encoder": {"losses": {"caption": 1.0}}})
    usual = base["stages"]["align"]
    align = params.fitted("align")
    assert align.mix == {"caption": 2.0}
    assert align.learning_rate == {**usual["learning_rate"], "connector": 1.0e-4}
    assert (align.steps, align.batch_size, align.trainable) == (5, usual["batch_size"], usual["trainable"])
    assert params.fitted("encoder").losses == {"caption": 1.0}
    assert params.fitted("instruct").steps == base["stages"]["instruct"]["steps"]


def test_the_mix_is_replaced_as_a_whole() -> None:
    assert small(mix={"vqa": 3, "text": 1}).mixes == {"mine": {"vqa": 3.0, "text": 1.0}}
    assert "no task 'vqaa' (did you mean 'vqa'?)" in refused(mix={"vqaa": 1})


# -- everything else -----------------------------------------------------------------------------------------


def test_targets_world_and_data(base: dict[str, Any]) -> None:
    stages = {
        **DRAWING["stages"],
        "image_decoder": {"trainable": ["connector", "image_decoder"]},
        "align": None,
    }
    stages["instruct"] = {"trainable": ["text_decoder", "visual_head"]}
    params = small(
        **{**DRAWING, "stages": stages}, targets="connector", world={"locations": 4}, data={"test_scenes": 9}
    )
    assert params.targets == "connector"
    assert (params.world.locations, params.world.image_size) == (4, base["world"]["image_size"])
    assert (params.data.test_scenes, params.data.train_scenes) == (9, base["data"]["train_scenes"])


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"encodr": "vit"}, f"{FILE}: unknown key 'small.encodr' (did you mean 'encoder'?)"),
        ({"stages": {"alin": {}}}, "unknown key 'stages.alin' (did you mean 'align'?)"),
        ({"stages": {"align": {"step": 3}}}, "unknown key 'stages.align.step' (did you mean 'steps'?)"),
        ({"world": {"size": 32}}, "unknown key 'world.size'"),
        ({"recipe": ["data", "instrct"]}, "no stage 'instrct' (did you mean 'instruct'?)"),
        ({"mix": {"text_to_image": 1}}, "'text_to_image' draws images, but there is no visual_head"),
        ({"stages": {"instruct": {"trainable": ["conector"]}}}, "no part 'conector'"),
    ],
)
def test_mistakes_are_named(declared: dict[str, Any], expected: str) -> None:
    assert expected in refused(**declared)


def test_overrides_come_last() -> None:
    params = small(
        "connector.num_latents=9",
        "seed=3",
        "stages.instruct.steps=4",
        connector={"name": "perceiver", "depth": 1},
    )
    assert params.spec("connector", "perceiver")["num_latents"] == 9
    assert params.spec("connector", "perceiver")["depth"] == 1
    assert (params.seed, params.fitted("instruct").steps) == (3, 4)
    assert "unknown key 'sede' (did you mean 'seed'?)" in refused("sede=3")
    assert small().seed != 3  # nothing is left behind
    assert small("mix.by_example=2").mixes["mine"]["by_example"] == 2
    assert "mixes.main: a system has one mix, whose shares are mix.TASK" in refused("mixes.main.by_example=2")


def test_a_system_without_a_small_size_says_so() -> None:
    with pytest.raises(LabError, match=r"mine\.yaml: there is no small size to train"):
        small_params(System("mine", "", "", (), None, None), FILE, [])


def test_a_declaration_on_disk_is_read_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    declared = {"connector": "mlp", "stages": {"align": None}}
    tree = {"paper": "A System: Small, arXiv:2301.00001", "claims": ["understanding"], "small": declared}
    file.write_text(yaml.safe_dump(tree))
    assert small_params(read_system(file), file, []) == small(**declared)
