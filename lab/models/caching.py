"""Which stages may read cached features, told from words and settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.errors import nearest
from lab.registry import describe
from lab.samples.mix import parse

if TYPE_CHECKING:
    from lab.config import Params

# a stage that caches features, and the one that reads them
FEATURES = {f"{name}_features": name for name in ("align", "pretrain", "instruct")}
CACHES = ("auto", "on", "off")
DTYPES = ("fp32", "bf16", "fp16")


def pools(params: Params) -> bool:
    """Whether every connector begins with averaging without parameters, and nothing else reads features."""
    heads = params.visual_head is None  # what a drawn image is made of are the tokens as they are
    return heads and all("pooled" in describe("connector", word).methods for word in params.connectors)


def trains_encoder(params: Params, stage: str) -> str:
    """What of the encoder a stage trains, as it is written there, "" if nothing."""
    trained = getattr(params.fitted(stage), "trainable", ["encoder"] if stage == "encoder" else [])
    return next((part for part in trained if part.partition(".")[0] == "encoder"), "")


def mistakes_of_caches(params: Params) -> list[str]:
    """Say which features cannot be cached, and why."""
    found = []
    for name, reader in FEATURES.items():
        if name in params.recipe:
            found += [f"recipe: {name}: {mistake}" for mistake in _mistakes(params, name, reader)]
    settings = params.stages.features
    if settings is not None:
        for key, given, known in (("cache", settings.cache, CACHES), ("dtype", settings.dtype, DTYPES)):
            if given not in known:
                found.append(f"stages.features.{key}: no {key} '{given}'{nearest(given, known)}")
    return found


def _mistakes(params: Params, name: str, reader: str) -> list[str]:
    recipe = params.recipe
    if reader not in recipe[recipe.index(name) :]:
        return [f"no stage {reader} follows that would read its features"]
    found = []
    between = recipe[recipe.index(name) + 1 : recipe.index(reader)]
    for stage in (*between, reader):
        part = trains_encoder(params, stage) if getattr(params.stages, stage, None) else ""
        if part and stage == reader:
            found.append(f"stages.{reader}.trainable has {part}, so features change with every step")
        elif part:
            found.append(f"{stage} trains {part} after it; put {name} behind {stage}")
    if params.fitted(reader).budget:
        found.append(f"stages.{reader}.budget: how many images that takes is not known before; state steps")
    mixes = params.mixes if reader == "instruct" else {"": params.fitted(reader).mix}
    if any(parse(mix).count == "tokens" for mix in mixes.values()):
        found.append("the mix counts tokens, of which connectors make more or less; count samples")
    if params.visual_head and params.setting("visual_head", params.visual_head, "loss") == "decoder":
        found.append("the loss of visual_head goes through the image decoder, which needs pixels")
    return found
