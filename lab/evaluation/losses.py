"""Held-out losses of the unified model, task by task."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lab.models.unified import UnifiedModel
from lab.samples.batch import Collate
from lab.samples.mixture import Mixture, Source

_SAMPLES = 256


def held_out(sources: Mapping[str, Source], mix: Mapping[str, float], seed: int) -> Mixture | None:
    """The samples that losses are measured on; None where the mix names no source that has any.

    Args: as of `validation_losses`.
    """
    known = {name: share for name, share in mix.items() if name in sources}
    return Mixture(sources, known, _SAMPLES, seed + 1) if any(known.values()) else None


@torch.no_grad()
def validation_losses(
    model: UnifiedModel,
    sources: Mapping[str, Source],
    collate: Collate,
    mix: Mapping[str, float],
    seed: int,
    batch_size: int = 64,
) -> dict[str, float]:
    """Mean text and image loss of every task of the mix on held-out samples.

    Args:
        model: in eval mode.
        sources: of a held-out split.
        collate: with right padding.
        mix: source -> weight.
        seed: of the samples drawn.
        batch_size: samples at once.

    Returns:
        `validation/loss` (text plus image), `validation/loss_<task>` and `validation/loss_<task>_image`.
        Nothing where the mix names no source.
    """
    samples = held_out(sources, mix, seed)
    if samples is None:
        return {}
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for first in range(0, len(samples), batch_size):
        batch = collate([samples[first + offset] for offset in range(batch_size)])
        losses = model(batch.to(next(model.parameters()).device))
        for name, total, count in (
            ("", losses.text_sum, losses.text_count),
            ("_image", losses.image_sum, losses.image_count),
        ):
            for task, one, number in zip(batch.tasks, total.tolist(), count.tolist(), strict=True):
                sums[f"{task}{name}"] = sums.get(f"{task}{name}", 0.0) + one
                counts[f"{task}{name}"] = counts.get(f"{task}{name}", 0.0) + number
    means = {f"validation/loss_{name}": sums[name] / counts[name] for name in sums if counts[name]}
    text = [name for name in sums if not name.endswith("_image")]
    image = [name for name in sums if name.endswith("_image")]
    overall = sum(
        sum(sums[name] for name in names) / max(1.0, sum(counts[name] for name in names))
        for names in (text, image)
    )
    return {"validation/loss": overall, **means}
