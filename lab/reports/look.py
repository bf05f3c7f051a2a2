"""One look for all pictures: quiet axes, colours that colour-blind readers tell apart, stable bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")  # no screen is needed, none is looked for

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#000000",
    "#8C8C8C",
)  # Okabe-Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, QUIET, PALE, LINES = "#222222", "#777777", "#CFCFCF", "#EEEEEE"

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": LINES,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 130,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Plot:
    """A picture that was written.

    Attributes:
        path: The PNG.
        title: What it shows.
        caption: How to read it.
    """

    path: Path
    title: str
    caption: str


@contextmanager
def styled() -> Iterator[None]:
    """Figures made inside have the look."""
    with matplotlib.rc_context(_STYLE):
        yield


def pick(palette: Sequence[str], names: Sequence[str], name: str) -> str:
    """The colour or marker of one of several names."""
    return palette[names.index(name) % len(palette)]


def draw_each(
    wanted: Sequence[tuple[str, str, str, Callable[[Shown], Figure | None]]], shown: Shown, folder: Path
) -> list[Plot]:
    """Draws a page's pictures, and removes those of an earlier page for which there are no numbers now.

    Args:
        wanted: Name of the file, title, caption, and what draws it; None is no picture.
        shown: What each of them is given.
        folder: Where the PNGs go.
    """
    drawn = []
    for name, title, caption, figure_of in wanted:
        path = folder / f"{name}.png"
        with styled():
            figure = figure_of(shown)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            save(figure, path)
        drawn.append(Plot(path, title, caption))
    return drawn


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG: same numbers, same bytes."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(draft, metadata={"Software": None})
    os.replace(draft, path)  # never into a file that DVC's cache may share by a hard link
    plt.close(figure)
