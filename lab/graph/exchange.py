"""Arms out of the lab and into it, in the formats of other libraries."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lab.errors import LabError
from lab.graph.arm import find_arm


def export(run: str, folder: str, part: Literal["model", "image_decoder"]) -> list[str]:
    """Writes a trained arm for transformers, or its image decoder for diffusers.

    Args:
        run: a trained arm (see `find_arm`).
        folder: to write to; it must not exist yet, or be empty.
        part: which.

    Returns:
        What the person should know of what was written.
    """
    from lab.exchange.image_decoder import export_image_decoder
    from lab.exchange.llava import export_llava
    from lab.graph.trained import image_decoder_of
    from lab.models.arm import load_arm
    from lab.models.store import load_component

    place = find_arm(run)
    with _new(Path(folder)) as partial:
        arm = load_arm(place)
        if part == "model":
            return export_llava(arm, partial)
        decoder = image_decoder_of(place.parents[1])
        spec = json.loads((decoder / "config.json").read_text())["spec"]
        return export_image_decoder(
            spec["name"],
            load_component(decoder),
            arm.built["encoder"][0]["name"],
            arm.model.encoder,
            partial,
        )


def take(checkpoint: str, name: str) -> list[str]:
    """Writes a checkpoint as an arm below `.lab/arms`.

    Args:
        checkpoint: its folder.
        name: of the arm.

    Returns:
        What the person should know of the arm.
    """
    from lab.exchange.checkpoint import import_checkpoint

    if not name or Path(name).name != name:
        raise LabError(f"'{name}' is no name for an arm: expected a single word without '/'")
    arm = Path.cwd() / ".lab" / "arms" / name
    with _new(arm) as partial:
        return import_checkpoint(Path(checkpoint), partial / "output" / "instruct" / name)


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """Gives a folder to write to that becomes `folder` when the block ends well.

    Raises:
        LabError: there is something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(f"{folder}: exists already; choose another name or remove it")
    partial = folder.absolute().parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
