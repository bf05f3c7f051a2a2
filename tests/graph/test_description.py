"""What `lab describe` counts: parameters, bytes and operations, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.layers.pretrained import architectures, load
from lab.config import load_params
from lab.errors import LabError
from lab.graph.description import NF4, Cost, describe, outlined, shape_of, weigh

DIM, DEPTH, TOKENS, LENGTH, WORDS, WIDTH = 64, 2, 16, 48, 50, 24
TINY: dict[str, Any] = {
    "image_size": 32,
    "encoder": {"name": "patches", "patch_size": 8, "dim": WIDTH},
    "connector": {"name": "linear"},
    "text_decoder": {"name": "llama", "dim": DIM, "depth": DEPTH, "num_heads": 4, "intermediate_size": 128},
    "fusion": {"name": "sequence"},
    "visual_head": None,
    "image_decoder": None,
    "targets": "encoder",
    "vocab_size": WORDS,
    "stages": {},
}


def cost(trainable: list[str], stage: str = "align", batch_size: int | None = 8, **roles: Any) -> Cost:
    """The cost of one stage of the tiny system; keywords replace its roles."""
    declared = {"trainable": trainable, "batch_size": batch_size, "sequence": LENGTH}
    return describe({**TINY, **roles, "stages": {stage: declared}})[1][0]


def forward() -> tuple[int, int, int, int]:
    """Operations of the tiny system's forward pass for one sample, from the sizes of its matrices.

    Those of the encoder, of the connector, of the language model's weights, and of its attention.
    """
    encoder = 2 * TOKENS * WIDTH * (3 * 8 * 8)
    connector = 2 * TOKENS * WIDTH * DIM
    weights = DEPTH * 2 * LENGTH * (4 * DIM * DIM + 3 * DIM * 128) + 2 * LENGTH * DIM * WORDS
    attention = DEPTH * 2 * 2 * LENGTH * LENGTH * DIM
    return encoder, connector, weights, attention


def test_operations_follow_from_what_trains() -> None:
    """A product has two gradients; only those are computed that something which trains needs."""
    encoder, connector, weights, attention = forward()
    # the connector's input needs none, nor do the frozen weights of the language model
    assert cost(["connector"]).operations == 8 * (encoder + 2 * connector + 2 * weights + 3 * attention)
    both = cost(["connector", "text_decoder"]).operations
    assert both == 8 * (encoder + 2 * connector + 3 * weights + 3 * attention)
    assert cost(["text_decoder"]).operations == 8 * (encoder + connector + 3 * weights + 3 * attention)
    assert cost([]).operations == 8 * (encoder + connector + weights + attention)
    everything = cost(["encoder", "connector", "text_decoder"]).operations
    assert everything == 8 * (2 * encoder + 3 * connector + 3 * weights + 3 * attention)


def test_a_batch_that_is_not_stated_is_one_sample() -> None:
    assert cost(["connector"], batch_size=None).operations * 8 == cost(["connector"]).operations


def test_memory_follows_from_what_trains() -> None:
    with outlined(TINY) as parts:
        total = sum(p.numel() for part in parts.values() for p in part.parameters())
        connector = sum(p.numel() for p in parts["connector"].parameters())
    align = cost(["connector"])
    assert (align.weights, align.gradients, align.optimizer) == (2 * total, 2 * connector, 12 * connector)


def test_adapters_train_alone() -> None:
    decoder = {**TINY["text_decoder"], "lora_rank": 4}
    adapted = cost(["text_decoder.lora"], text_decoder=decoder)
    rows = 4 * 2 * DIM + 3 * (DIM + 128)  # in and out of the seven linear layers of a block
    assert adapted.gradients == 2 * 4 * rows * DEPTH
    assert adapted.operations < cost(["text_decoder"], text_decoder=decoder).operations


def test_weights_in_four_bits_take_less() -> None:
    packed = DEPTH * (4 * DIM * DIM + 3 * DIM * 128)
    decoder = {**TINY["text_decoder"], "quantise": "nf4_simulated"}
    saved = cost(["connector"]).weights - cost(["connector"], text_decoder=decoder).weights
    assert saved == round(packed * (2 - NF4))


def test_layers_beside_the_sequence_count_as_the_fusion() -> None:
    plain, beside = cost(["fusion"]), cost(["fusion"], fusion={"name": "cross_attention"})
    assert plain.gradients == 0
    assert beside.gradients > 0
    assert beside.operations > plain.operations


def test_the_image_decoder_trains_without_the_language_model() -> None:
    drawing = {**TINY, "image_decoder": {"name": "transformer"}}
    with outlined(drawing) as parts:
        encoder, decoder = (
            sum(p.numel() for p in parts[r].parameters()) for r in ("encoder", "image_decoder")
        )
    alone = cost(["image_decoder"], stage="image_decoder", image_decoder={"name": "transformer"})
    assert alone.weights == 2 * (encoder + decoder)
    assert alone.gradients == 2 * decoder
    assert alone.operations > 0


@pytest.mark.parametrize("head", ["regression", "codebook", "queries", "flow", "diffusion"])
def test_every_head_is_counted(head: str) -> None:
    drawn = cost(["visual_head"], visual_head={"name": head})
    assert drawn.gradients > 0
    assert drawn.operations > cost([]).operations


def test_parameters_of_a_pipeline_have_the_shape_of_a_system() -> None:
    small = shape_of(load_params(Path(__file__).resolve().parents[2] / "params.yaml"))
    assert small["encoder"]["name"] == "vit"
    assert small["stages"]["align"]["trainable"] == ["connector", "visual_head"]
    with outlined(small) as parts:
        assert {part.role for part in weigh(small, parts)} == set(parts)


def test_images_that_do_not_fit_are_refused() -> None:
    shape = {**TINY, "stages": {"align": {"trainable": [], "batch_size": 1, "sequence": TOKENS - 1}}}
    with pytest.raises(LabError, match="align: sequence 15 is shorter than its images, by 1 positions"):
        describe(shape)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(LabError, match=r"no parameter of connector matches 'projct\.\*'"):
        cost(["connector.projct.*"])


def test_architectures_are_built_from_configurations(tmp_path: Path) -> None:
    import transformers

    (tmp_path / "some--model.json").write_text(
        '{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 40}'
    )
    with torch.device("meta"), architectures(tmp_path):
        model = load(transformers.AutoModelForCausalLM, "some/model", "causal language model")
        assert load(transformers.AutoConfig, "some/model", "model").n_embd == 32
        with pytest.raises(ValueError, match="no configuration of the causal language model 'other/model'"):
            load(transformers.AutoModelForCausalLM, "other/model", "causal language model")
    assert model.get_input_embeddings().weight.shape == (40, 32)
    assert model.get_input_embeddings().weight.is_meta
