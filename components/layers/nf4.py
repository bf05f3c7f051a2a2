"""Linear layers in four bits, as QLoRA (arXiv:2305.14314, section 3) keeps a frozen language model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["VALUES", "pack", "pack_weight", "rounded", "unpacked"]

BLOCK = 64  # weights that share a scale

# Quantiles of the normal distribution, 8 above zero and 7 below, scaled to [-1, 1]; appendix E.
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def rounded(weight: Tensor) -> Tensor:
    """Round a weight to NF4: in blocks of 64, row by row, to a value times the block's largest magnitude.

    The scales stay in single precision, as without double quantisation. Rounding twice changes nothing.
    """
    flat = weight.detach().float().flatten()
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))  # (blocks, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    values = torch.tensor(VALUES, dtype=torch.float32, device=weight.device)
    nearest = torch.bucketize(blocks * (1 / scale.clamp_min(1e-38)), (values[1:] + values[:-1]) / 2)
    return (values[nearest] * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def pack(linear: nn.Module) -> Any:
    """Make a layer of bitsandbytes that keeps the weight of `linear` in four bits, rounded as `rounded` does.

    It computes in the dtype of its input and passes gradients on; its weight has none.

    Raises:
        ValueError: bitsandbytes is missing or cannot do this here, or the layer is no `nn.Linear` or of a
            width that it reads wrongly.
    """
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"quantise: nf4 packs nn.Linear only, not {type(linear).__name__}")
    if linear.in_features % BLOCK:  # its kernels for CPUs take each row to begin a block
        raise ValueError(
            f"quantise: nf4 takes widths that are multiples of {BLOCK}, not {linear.in_features}"
        )
    packed = _library().nn.Linear4bit(
        linear.in_features, linear.out_features, compress_statistics=False, quant_type="nf4", device="meta"
    )
    packed.bias = linear.bias
    pack_weight(packed, linear.weight)
    return packed


def pack_weight(packed: Any, weight: Tensor) -> None:
    """Give a layer made by `pack` the numbers of a weight (out, in), on the weight's device."""
    packed.weight = _library().nn.Params4bit(
        weight.detach(), compress_statistics=False, quant_type="nf4", module=packed
    )
    try:
        packed.weight = packed.weight.to(weight.device)  # quantises, except on the meta device
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"quantise: bitsandbytes cannot do nf4 on {weight.device} ({reason})") from error


def unpacked(packed: Any) -> Tensor:
    """Give the weight (out, in) of a layer made by `pack` as plain numbers."""
    if packed.weight.quant_state is None:  # on the meta device
        return packed.weight.detach()
    return _library().functional.dequantize_4bit(packed.weight.detach(), packed.weight.quant_state)


def _library() -> Any:
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            "quantise: nf4 needs bitsandbytes; nf4_simulated gives the same numbers at full size without it"
        ) from error
