"""Declared systems with fresh parts."""

from __future__ import annotations

from typing import Any

import torch

from lab.config import Params
from lab.models.arm import Arm, new_arm
from lab.registry import build
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks


def fresh(params: Params, scenes: SceneTasks) -> Arm:
    """A small system in eval mode, as far as its training goes; needs 32 scenes."""
    decoder: Any = None
    if params.visual_head and params.spec("visual_head", params.visual_head).get("loss") == "decoder":
        spec = params.spec("image_decoder", str(params.image_decoder))
        decoder = build("image_decoder", spec, 128, 16, params.world.image_size).requires_grad_(False)
    tokenizer = Tokenizer.of_words(scenes.language.vocabulary())
    arm = new_arm(params, params.connectors[0], {}, tokenizer, decoder)
    model = arm.model.eval()
    if model.visual_head is not None:
        with torch.no_grad():
            tokens = model.image_tokens(torch.from_numpy(scenes.split.pixels(torch.arange(32).numpy())))
        source: Any = model.encoder if params.targets == "encoder" else model.connector
        model.visual_head.prepare(tokens, getattr(source, "codebook", None))
    return arm
