"""Which parameters of the unified model a recipe trains."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from components.contracts import TextDecoder
from lab.config import ROLES
from lab.errors import LabError, nearest
from lab.models.unified import UnifiedModel

ROWS_ONLY = "rows_only"  # marks a parameter of which a few rows train


def set_trainable(model: UnifiedModel, trainable: Sequence[str], image_marks: Sequence[int] = ()) -> None:
    """Freezes all of the unified model that the recipe does not name.

    A part is a role; a role and a pattern of parameter names, such as `text_decoder.*norm*` or
    `encoder.*blocks.11.*`; `text_decoder.lora` or `text_decoder.adapters`, what was added to the language
    model; or `text_decoder.image_marks`, of its word embeddings and output rows those of the tokens around an
    image, which a frozen language model has never seen.

    Raises:
        LabError: an unknown part, or a pattern that no parameter matches.
    """
    model.requires_grad_(False)
    for part in trainable:
        role, _, pattern = part.partition(".")
        module = getattr(model, role, None) if role in ROLES else None
        if module is None:
            raise LabError(f"trainable: unknown part '{part}'{nearest(part, ROLES)}")
        if part == "text_decoder.image_marks":
            _train_rows(module, image_marks)
            continue
        if part in ("text_decoder.lora", "text_decoder.adapters"):
            chosen = [
                p for name, p in module.adapter_parameters() if part.endswith("adapters") or "lora_" in name
            ]
        else:
            chosen = [p for name, p in module.named_parameters() if fnmatchcase(name, pattern or "*")]
        if not chosen and part == "text_decoder.lora":
            raise LabError(
                "trainable: text_decoder.lora, but the text decoder has no adapters; set lora_rank"
            )
        if not chosen and pattern:
            names = [name for name, _ in module.named_parameters()]
            raise LabError(f"trainable: no parameter of {role} matches '{pattern}'{nearest(pattern, names)}")
        for parameter in chosen:
            parameter.requires_grad_(True)


def _train_rows(decoder: TextDecoder, rows: Sequence[int]) -> None:
    """Of the word embeddings and the output layer, lets these rows learn alone."""
    matrices = {id(p): p for name, p in decoder.named_parameters() if p.shape[:1] == (decoder.vocab_size,)}  # type: ignore[attr-defined]
    for parameter in matrices.values():
        keep = torch.zeros(len(parameter), dtype=torch.bool)
        keep[list(rows)] = True
        shape = (-1, *[1] * (parameter.ndim - 1))
        parameter.requires_grad_(True)
        setattr(parameter, ROWS_ONLY, True)  # no weight decay: it would move the other rows
        parameter.register_hook(_Kept(keep.view(shape)))


class _Kept:
    """Lets some rows of a gradient through."""

    def __init__(self, keep: Tensor) -> None:
        self.keep = keep

    def __call__(self, grad: Tensor) -> Tensor:
        self.keep = self.keep.to(grad.device)  # goes there once
        return grad * self.keep
