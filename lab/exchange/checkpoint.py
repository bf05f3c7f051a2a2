"""A checkpoint of a published model as an arm's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.exchange.blip2 import read_blip2
from lab.exchange.llava import read_llava
from lab.exchange.parts import Taken, image_settings, own_tokenizer
from lab.models.arm import Arm
from lab.models.unified import UnifiedModel
from lab.registry import build
from lab.samples.tokenizer import Tokenizer

_READERS: dict[str, Callable[[Path, Tokenizer, dict[int, int | None]], Taken]] = {
    "llava": read_llava,
    "blip-2": read_blip2,
}


def import_checkpoint(source: Path, folder: Path) -> list[str]:
    """Write a checkpoint of transformers, LLaVA or BLIP-2, as an arm.

    The arm's folder has all weights and configurations; the checkpoint is no longer needed.

    Args:
        source: the checkpoint's folder, as `save_pretrained` of model and processor writes it.
        folder: to write to.

    Returns:
        What the person should know of the arm, a line each.

    Raises:
        LabError: a checkpoint that cannot be read, or of which the lab has no word for a part.
    """
    try:
        kind = json.loads((source / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise LabError(f"{source}: no checkpoint of transformers can be read there: {error}") from error
    if kind not in _READERS:
        raise LabError(f"{source}: a checkpoint of {kind}; the lab reads {', '.join(_READERS)}")
    tokenizer, added = own_tokenizer(source)
    taken = _READERS[kind](source, tokenizer, added)
    parts: dict[str, Any] = {role: part for role, (_, _, part) in taken.items()}
    decoder = parts["text_decoder"]
    args = (decoder.dim, len(decoder.layers), parts["connector"].num_tokens)
    spec = {"name": "sequence"}
    parts["fusion"] = build("fusion", spec, *args)
    built = {role: (spec, args) for role, (spec, args, _) in taken.items()} | {"fusion": (spec, args)}
    Arm(UnifiedModel(**parts), tokenizer, built).save(folder)
    notes = ["its sequences are laid out as the lab's; marks that it has never seen stand for its own prompt"]
    if image_settings(source).get("do_center_crop"):
        notes.append("its processor crops images to a square, the lab squeezes them into one")
    return notes
