"""Which features are refused before anything runs, and what depends on those that are cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import Params, check_params
from lab.errors import LabError
from lab.graph.ablation import read_ablation
from lab.graph.compile import Graph, compile_graph
from lab.graph.node import REPOSITORY
from lab.graph.stages import instance_kinds, stages_of

SMOKE = REPOSITORY / "experiments" / "ablations" / "smoke" / "params.yaml"
PARTS = ["data", "judge", "encoder", "text_decoder", "image_decoder"]
CACHED = [*PARTS, "align_features", "align", "instruct_features", "instruct", "evaluate"]


def tree(**changes: Any) -> dict[str, Any]:
    """The smoke pipeline with cached features; keys with `__` between their parts."""
    made: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    made["recipe"] = CACHED
    made["stages"]["features"] = {"cache": "on"}
    for key, value in changes.items():
        place, (*path, last) = made, key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return made


def params(**changes: Any) -> Params:
    return check_params(tree(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stages__align__trainable": ["connector", "visual_head", "encoder"]},
            "recipe: align_features: stages.align.trainable has encoder, so features change with every step",
        ),
        (
            {"stages__align__trainable": ["connector", "encoder.blocks.5.*"]},
            "recipe: align_features: stages.align.trainable has encoder.blocks.5.*, so features change",
        ),
        (
            {"recipe": [*PARTS, "instruct_features", "align", "instruct", "evaluate"]}
            | {"stages__align__trainable": ["connector", "visual_head", "encoder"]},
            "align trains encoder after it; put instruct_features behind align",
        ),
        (
            {"recipe": [*PARTS, "align", "align_features", "instruct", "evaluate"]},
            "recipe: align_features: no stage align follows that would read its features",
        ),
        (
            {"stages__instruct__budget": {"seconds": 5}},
            "stages.instruct.budget: how many images that takes is not known before; state steps",
        ),
        (
            {"mixes": {"tokens": {"count": "tokens", "of": {"vqa": 1, "caption": 1}}}},
            "recipe: instruct_features: the mix counts tokens",
        ),
        (
            {"stages__features": {"cache": "atuo"}},
            "stages.features.cache: no cache 'atuo' (did you mean 'auto'?)",
        ),
        (
            {"stages__features": {"dtype": "bf61"}},
            "stages.features.dtype: no dtype 'bf61' (did you mean 'bf16'?)",
        ),
        ({"recipe": ["align_feature", *PARTS, "align", "instruct"]}, "(did you mean 'align_features'?)"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[-40:],
)
def test_what_cannot_be_cached_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    changes = {
        "stages__align__learning_rate": dict.fromkeys(("connector", "visual_head", "encoder"), 1e-3)
    } | changes
    with pytest.raises(LabError) as caught:
        params(**changes)
    assert said in str(caught.value)


def test_a_recipe_with_features_needs_their_section() -> None:
    without = tree()
    del without["stages"]["features"]
    with pytest.raises(LabError, match=r"missing key 'stages\.features'"):
        check_params(without)


def test_features_follow_from_encoder_and_images_not_from_connectors() -> None:
    stages = stages_of(params())
    align, instruct = stages["align_features"], stages["instruct_features"]
    assert (instance_kinds(align), instance_kinds(instruct)) == ([], ["mix"])
    assert align.upstream == instruct.upstream == ("data", "encoder")
    assert "align_features" in stages["align"].upstream
    assert "instruct_features/{mix}" in stages["instruct"].upstream
    assert not {key for key in align.keys if key.endswith(("learning_rate", "trainable", "targets"))}


def test_features_of_an_encoder_that_align_trains_follow_from_it() -> None:
    rates = dict.fromkeys(("connector", "visual_head", "encoder"), 1e-3)
    recipe = [name for name in CACHED if name not in ("align_features", "image_decoder")]
    recipe.insert(recipe.index("evaluate"), "image_decoder")
    trained = {"stages__align__trainable": list(rates), "stages__align__learning_rate": rates}
    stages = stages_of(params(recipe=recipe, **trained))
    assert stages["instruct_features"].parts == {"encoder": ("align", "encoder")}
    assert instance_kinds(stages["instruct_features"]) == ["connector", "mix"]


def test_features_are_of_a_connector_where_they_are_pooled_for_it() -> None:
    reads = {"visual_head": None, "image_decoder": None, "mixes": {"vqa": {"vqa": 1}}}
    reads |= {"recipe": ["data", "encoder", "text_decoder", "instruct_features", "instruct", "evaluate"]}
    reads |= {"stages__instruct__trainable": ["connector"]}
    kinds = {
        connectors: instance_kinds(
            stages_of(params(connectors=list(connectors), **reads))["instruct_features"]
        )
        for connectors in (("pool",), ("linear",), ("pool", "linear"))
    }
    assert kinds == {("pool",): ["connector", "mix"], ("linear",): ["mix"], ("pool", "linear"): ["mix"]}


def graph(folder: Path, **changes: Any) -> Graph:
    (folder / "params.yaml").write_text(yaml.safe_dump(tree()))
    factors = {"connector": ["linear", "mlp"], "mix": ["understanding", "generation"]}
    made = {"base": "params.yaml", "factors": factors, "seeds": [0, 1], "replicate_from": "align", **changes}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return compile_graph(read_ablation(folder / "ablation.yaml"))


def test_arms_share_features_across_connectors(tmp_path: Path) -> None:
    """A seed changes which images are seen, so each has its own; another seed or mix renames none."""
    folder = tmp_path / "trial"
    folder.mkdir()
    few = graph(folder).nodes
    labels = {
        stage: {node.label for node in few.values() if node.stage == stage}
        for stage in ("align_features", "instruct_features")
    }
    assert labels == {
        "align_features": {"s0", "s1"},
        "instruct_features": {f"{mix}-s{seed}" for mix in ("understanding", "generation") for seed in (0, 1)},
    }
    readers = [node.name for node in few.values() if "align_features@s0" in node.inputs.values()]
    assert readers == ["align@linear-s0", "align@mlp-s0"]
    assert few["align_features@s1"].params.seed == 1
    more = graph(folder, seeds=[0, 1, 2]).nodes
    assert all(more[name].key == node.key for name, node in few.items())
