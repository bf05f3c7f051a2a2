"""A trained arm as a model of MLflow, which names the arm instead of copying its weights.

`mlflow.pyfunc.load_model("models:/m-...")` in the checkout, or in a clone with its outputs restored by DVC,
gives a model that answers and draws. MLflow imports this module for it and calls `_load_pyfunc`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.graph.node import identity_of
from lab.tracking.store import root

if TYPE_CHECKING:
    import pandas as pd

    from lab.graph.context import Context
    from lab.tracking import Run

# column -> type of MLflow and whether it has to be there
INPUTS = {"text": ("string", True), "image": ("binary", False)}
OUTPUTS = {"text": ("string", False), "image": ("binary", False)}


def record_model(context: Context, run: Run) -> None:
    """Records the arm that a stage has evaluated, with the metrics that the run got last."""
    from lab.graph.hashing import hashed

    parts: dict[str, Any] = {}
    places = {"arm": context.parts["encoder"].parent, "image_decoder": context.parts.get("image_decoder")}
    for part, place in places.items():
        if place is None:
            continue
        node = place if (place / "node.json").exists() else place.parent
        shown = place.relative_to(root()) if place.is_relative_to(root()) else place
        parts[part] = {"path": str(shown), "identity": identity_of(node), "dvc": hashed(node).md5}
    words = {key: value for key, value in context.params.words().items() if value}
    chosen = {"connector": context.connector, "mix": context.mix, **words, "seed": str(context.params.seed)}
    chosen = {key: value for key, value in chosen.items() if value}
    name = context.params.system or context.node.instance
    run.model(name, "lab.graph.served", parts, INPUTS, OUTPUTS, chosen)


class Served:
    """An arm that MLflow has loaded: answers where a row has an image, draws where it has none.

    Args:
        parts: what `record_model` has recorded.
    """

    def __init__(self, parts: dict[str, dict[str, str]]) -> None:
        from lab.models.arm import load_arm
        from lab.models.store import load_component

        self._arm = load_arm(_restored(parts["arm"]))
        decoder = parts.get("image_decoder")
        self._image_decoder = load_component(_restored(decoder)) if decoder else None

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Rows with `text`, and `image` (bytes of a file) or none -> rows with `text` or `image` (PNG)."""
        import pandas as pd

        images = rows["image"] if "image" in rows else [None] * len(rows)
        said = [self._row(text, image) for text, image in zip(rows["text"], images, strict=True)]
        return pd.DataFrame(said, columns=list(OUTPUTS), index=rows.index)

    def _row(self, text: str, image: bytes | None) -> dict[str, Any]:
        from PIL import Image

        from lab.graph.trained import answer, drawing

        if isinstance(image, bytes):
            return {"text": answer(self._arm, Image.open(io.BytesIO(image)), text), "image": None}
        if self._image_decoder is None:
            raise LabError(
                "this arm has no image decoder: it answers questions about images, and draws nothing"
            )
        written = io.BytesIO()
        drawing(self._arm, self._image_decoder, text, 0).save(written, "png")
        return {"text": None, "image": written.getvalue()}


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the path of the recorded file."""
    return Served(json.loads(Path(path).read_text(encoding="utf-8")))


def _restored(part: dict[str, str]) -> Path:
    """The folder of a part, if it is still what was recorded.

    Raises:
        LabError: it is not there, or something else is.
    """
    place = root() / part["path"]
    nodes = [place, place.parent]
    if not any((node / "node.json").exists() and identity_of(node) == part["identity"] for node in nodes):
        raise LabError(
            f"{place}: not the node {part['identity']} that was recorded; with its parameters in place, "
            f"`lab repro` restores it from DVC's cache (as {part['dvc']})"
        )
    return place
