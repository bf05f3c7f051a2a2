"""A recipe is a list of stages, and each stage's parts come from the last one before it that trained them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import Params
from lab.errors import LabError
from lab.graph.small import small_params
from lab.graph.stages import identified_by, stages_of
from lab.graph.system import read_system

Declare = Callable[..., Params]
DRAWS = {
    "visual_head": {"name": "regression", "feedback": "shared"},
    "image_decoder": "transformer",
    "targets": "connector",
}
LORA = {"name": "llama", "lora_rank": 4}
TOKENIZER = {
    "image_decoder": {"trainable": ["connector", "image_decoder"]},
    "align": None,
    "instruct": {"trainable": ["text_decoder", "visual_head"]},
}


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Parameters of a small system."""

    def make(**small: Any) -> Params:
        path = tmp_path / "mine.yaml"
        tree = {"paper": "A System, arXiv:2401.00001", "claims": ["understanding"], "small": small}
        path.write_text(yaml.safe_dump(tree))
        return small_params(read_system(path), path, [])

    return make


def test_a_part_comes_from_the_last_stage_that_trained_it(declare: Declare) -> None:
    stages = stages_of(declare(connector="mlp"))
    assert list(stages) == [
        "data",
        "judge",
        "encoder",
        "text_decoder",
        "align",
        "instruct",
        "evaluate",
        "compare",
    ]
    assert stages["align"].parts == {"encoder": ("encoder", ""), "text_decoder": ("text_decoder", "")}
    assert stages["instruct"].parts["encoder"] == ("align", "encoder")
    assert stages["evaluate"].parts["connector"] == ("instruct", "connector")
    assert stages["evaluate"].upstream == ("data", "judge", "instruct/{connector}-{mix}")


def test_a_tokenizer_of_images_is_trained_before_the_language_model_meets_it(declare: Declare) -> None:
    """VL-GPT: connector and image decoder first, the connector frozen from then on."""
    trained = {"trainable": ["connector", "image_decoder"]}
    instruct = {"trainable": ["text_decoder", "visual_head"]}
    params = declare(
        connector="causal_transformer",
        **DRAWS,
        stages={"image_decoder": trained, "align": None, "instruct": instruct},
    )
    stages = stages_of(params)
    assert stages["image_decoder"].roles == ("encoder", "connector", "text_decoder", "image_decoder")
    assert stages["instruct"].parts["connector"] == ("image_decoder", "connector")
    assert "image_decoder/{connector}" in stages["instruct"].upstream
    assert stages["evaluate"].parts["image_decoder"] == ("image_decoder", "")
    assert "image_decoder" not in stages["instruct"].parts  # its loss is not this head's


def test_an_image_decoder_may_come_last(declare: Declare) -> None:
    """Emu: the decoder learns to read what the trained connector says."""
    recipe = ["data", "judge", "encoder", "text_decoder", "instruct", "image_decoder", "evaluate"]
    everything = {"trainable": ["encoder", "connector", "text_decoder", "visual_head"]}
    params = declare(connector="causal_transformer", **DRAWS, recipe=recipe, stages={"instruct": everything})
    stages = stages_of(params)
    assert stages["image_decoder"].parts["connector"] == ("instruct", "connector")
    assert "instruct/{connector}-{mix}" in stages["image_decoder"].upstream
    assert "image_decoder/{connector}-{mix}" in stages["evaluate"].upstream
    assert stages["evaluate"].parts["image_decoder"] == ("image_decoder", "")


def test_a_loss_through_the_image_decoder_needs_it_in_training(declare: Declare) -> None:
    head = {"name": "queries", "loss": "decoder", "mapper": "linear", "num_queries": 16}
    stages = {"align": {"trainable": ["connector", "visual_head"]}}
    params = declare(visual_head=head, image_decoder="diffusion", stages=stages)
    assert stages_of(params)["align"].parts["image_decoder"] == ("image_decoder", "")
    plain = declare(visual_head={**head, "loss": "mse"}, image_decoder="diffusion", stages=stages)
    assert "image_decoder" not in stages_of(plain)["align"].parts


def test_adapters_share_the_pretraining_of_the_language_model(declare: Declare) -> None:
    plain = declare()
    lora = declare(
        text_decoder={"name": "llama", "lora_rank": 4},
        stages={"instruct": {"trainable": ["connector", "text_decoder.lora"]}},
    )
    deeper = declare(text_decoder={"name": "llama", "depth": 2})
    pretrained = [
        json.dumps(identified_by(params, "text_decoder", {}), sort_keys=True)
        for params in (plain, lora, deeper)
    ]
    assert pretrained[0] == pretrained[1] != pretrained[2]
    tokenizers = [
        json.dumps(identified_by(declare(connector="causal_transformer", **DRAWS, **more), name, given))
        for name, given in [("image_decoder", {"connector": "causal_transformer"})]
        for more in ({"stages": TOKENIZER}, {"stages": TOKENIZER, "text_decoder": LORA})
    ]
    assert tokenizers[0] == tokenizers[1]
    given = {"connector": "linear", "mix": "mine"}
    assert identified_by(plain, "instruct", given) != identified_by(lora, "instruct", given)


@pytest.mark.parametrize(
    ("small", "expected"),
    [
        ({"recipe": ["data", "instrct"]}, r"recipe: no stage 'instrct' \(did you mean 'instruct'\?\)"),
        ({"mix": {"text_to_image": 1}}, "'text_to_image' draws images, but there is no visual_head"),
        ({"targets": "conector"}, "targets: expected encoder or connector, not 'conector'"),
        (
            {"stages": {"instruct": {"trainable": ["visual_head"]}}},
            "visual_head, but there is no visual_head",
        ),
        ({"stages": {"instruct": {"trainable": ["text_decodr"]}}}, "did you mean 'text_decoder'?"),
    ],
)
def test_a_wrong_recipe_is_named(declare: Declare, small: dict[str, Any], expected: str) -> None:
    with pytest.raises(LabError, match=expected) as caught:
        declare(**small)
    assert "\n" not in str(caught.value)
