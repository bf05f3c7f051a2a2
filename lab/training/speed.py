"""What makes a step fast where it runs: layout, attention, recomputation, compilation, optimizer.

Everything here is for the time of a training and undone after it. Numbers follow from it by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lab.config import TrainerParams
from lab.errors import LabError
from lab.samples.batch import Batch, mapped
from lab.samples.step import Parts, Plan
from lab.training.checkpointing import checkpointed

# least tokens of a packed row: on CPUs attention costs every pair of a row, so rows are short
ROW = {"cpu": 96, "cuda": 4096}
WORTH_COMPILING = 50e6  # parameters of the language model: below, compiling takes longer than it saves


# precisions of Lightning in which weights and activations are all of one type
WHOLLY = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def in_precision(batch: Any, dtype: torch.dtype) -> Any:
    """A batch whose pixels and the like are of a type; what elements count in the loss stays exact."""
    if isinstance(batch, Parts):
        return Parts(tuple(in_precision(part, dtype) for part in batch.parts))
    changed = mapped(batch, lambda value: value.to(dtype) if value.dtype == torch.float32 else value)
    return replace(changed, weights=batch.weights) if isinstance(batch, Batch) else changed


def switched_on(word: str, device: str) -> bool:
    """Whether something is on that "auto" leaves to GPUs."""
    return word == "on" or (word == "auto" and device == "cuda")


def chosen(device: str) -> str:
    """What "auto" comes to on a kind of device, in a line."""
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if bf16 else "32-true"
        size = f"{WORTH_COMPILING / 1e6:.0f}M"
        layout = f"packed in rows of {ROW[device]} tokens and more (FlexAttention)"
        compiled = f"blocks compiled from {size} parameters of the language model on, fused optimizer"
        return f"layout {layout}, {compiled}; precision {precision} suits"
    row = ROW.get(device, ROW["cuda"])
    longer = f", longer samples in groups of like length (over {2 * row})" if device == "cpu" else ""
    return f"layout packed in rows of {row} tokens and more{longer}, not compiled; precision 32-true suits"


def plan_of(where: TrainerParams, module: Any, device: str, sharded: bool) -> Plan:
    """How the batches of a stage are laid out.

    Raises:
        LabError: samples are to share rows, and the language model does not allow it.
    """
    decoder = decoder_of(module)
    packs = decoder is not None and getattr(decoder, "packs", False)
    if where.layout == "packed" and decoder is not None and not packs:
        raise LabError(
            "trainer.layout: packed, but what a position of this language model sees does not follow from a "
            "mask alone (ALiBi, a window, or a state along the sequence); choose buckets or auto"
        )
    budget = ROW.get(device, ROW["cuda"])
    return Plan(
        word=where.layout,  # type: ignore[arg-type]
        budget=budget,
        longest=2 * budget if device == "cpu" else None,
        packs=packs,
        groups=not sharded,
        as_is=device == "cpu",
        # a block that is compiled, split or run twice has to be the same in every step
        sparing=device == "cpu" and not (where.checkpointing or where.compile == "on" or sharded),
    )


def decoder_of(module: Any) -> Any:
    """The language model of a stage, None where it has none."""
    if not module.language:
        return None
    return getattr(module.model, "text_decoder", module.model)


@contextmanager
def accelerated(module: Any, where: TrainerParams, device: str, sharded: bool = False) -> Iterator[None]:
    """While open, the language model's blocks run as `where` says."""
    decoder = decoder_of(module)
    with ExitStack() as stack:
        if decoder is not None:
            if device == "cuda" and where.layout in ("auto", "packed"):
                stack.enter_context(_flexible(decoder))
            if where.checkpointing:
                fusion = getattr(module.model, "fusion", None)
                stack.enter_context(checkpointed(decoder.layers, getattr(fusion, "again", None)))
            if not sharded and _worth_compiling(where, decoder, device):
                stack.enter_context(_compiled(decoder.layers))
        yield


def _worth_compiling(where: TrainerParams, decoder: nn.Module, device: str) -> bool:
    if where.compile == "auto":
        size = sum(parameter.numel() for parameter in decoder.parameters())
        return device == "cuda" and size >= WORTH_COMPILING
    return where.compile == "on"


@contextmanager
def _compiled(blocks: Any) -> Iterator[None]:
    """Compiles one block after the other: they share code, so the first costs and the others do not."""
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@contextmanager
def _flexible(decoder: Any) -> Iterator[None]:
    """FlexAttention, where the family of the language model and its width of a head have it."""
    model: Any = getattr(decoder, "model", None)
    if not getattr(model, "_supports_flex_attn", False) or not decoder.packs:
        yield
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("flex_attention")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
