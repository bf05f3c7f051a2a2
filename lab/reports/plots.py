"""The comparison's pictures. A connector keeps its colour and a mix its marker through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lab.reports.arms import Arm, Comparison
from lab.reports.look import COLOURS, INK, MARKERS, PALE, QUIET, Plot, pick, save, styled
from lab.reports.measures import GENERATION, MEASURES, UNDERSTANDING, Measure
from lab.reports.samples import Samples, grid

_DASHES = (0, (4, 2))


def draw(comparison: Comparison, samples: Samples | None, folder: Path) -> list[Plot]:
    """Draws all pictures for which there are numbers.

    Args:
        comparison: What to show.
        samples: Samples of all arms, where they were kept.
        folder: Where the PNGs go.
    """
    drawn = [
        _save(
            front,
            comparison,
            folder / "front.png",
            "Understanding against generation",
            "Crosses are 95% intervals. Filled: no other arm is better in both.",
        ),
        _save(
            mix,
            comparison,
            folder / "mix.png",
            "Effect of the mix",
            "One cell an arm: connector by mix, with half the width of its 95% interval.",
        ),
        _save(
            kinds,
            comparison,
            folder / "vqa_kinds.png",
            "Questions by kind",
            "VQA accuracy. Whiskers are 95% intervals; dashes: always the most frequent answer.",
        ),
        _save(
            fidelity,
            comparison,
            folder / "fidelity.png",
            "Drawn scenes by what is right",
            "As the judge reads them. Dashes are the ceiling: the image decoder given the real tokens.",
        ),
    ]
    if samples:
        drawn.append(
            _save(
                lambda _: grid(samples),
                comparison,
                folder / "samples.png",
                "Samples",
                "Held-out prompts, not chosen. Reconstructed: the image decoder given the real tokens.",
            )
        )
    return [plot for plot in drawn if plot is not None]


def front(comparison: Comparison) -> Figure | None:
    """Understanding against generation, with the arms that nothing beats joined by a line."""
    arms = [arm for arm in comparison.arms if _both(arm)]
    if not arms:
        return None
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    best = comparison.front
    corners = [(_shown(arm, UNDERSTANDING), _shown(arm, GENERATION)) for arm in best]
    # Stairs, not a slope: nothing promises an arm between two arms.
    axes.step(*zip(*corners, strict=True), where="pre", color=PALE, linewidth=4, zorder=1)
    for arm in arms:
        colour, marker = _colour(comparison, arm), _marker(comparison, arm)
        x, y = _shown(arm, UNDERSTANDING), _shown(arm, GENERATION)
        axes.errorbar(
            x,
            y,
            xerr=np.array([arm.errors(UNDERSTANDING)]).T,
            yerr=np.array([arm.errors(GENERATION)]).T,
            color=colour,
            marker=marker,
            markersize=9 if arm in best else 7,
            markerfacecolor=colour if arm in best else "white",
            markeredgewidth=1.6,
            linewidth=1.1,
            zorder=3,
        )
    axes.set_xlabel("understanding: VQA (%)")
    axes.set_ylabel("generation: whole scenes right (%)")
    axes.margins(0.08)
    axes.grid()
    _legend(axes, comparison, [Line2D([], [], color=PALE, linewidth=4, label="Pareto front")])
    return figure


def mix(comparison: Comparison) -> Figure | None:
    """Two heat maps, connector by mix: understanding and generation; none for an arm alone."""
    arms = [arm for arm in comparison.arms if _both(arm)]
    rows, columns = comparison.connectors, comparison.mixes
    if len(arms) < 2:
        return None
    width = 1.5 + 1.35 * len(columns)
    figure, both = plt.subplots(1, 2, figsize=(2 * width, 1.1 + 0.62 * len(rows)), layout="constrained")
    for axes, measure, title in zip(
        both,
        (UNDERSTANDING, GENERATION),
        ("Understanding: VQA (%)", "Generation: whole scenes right (%)"),
        strict=True,
    ):
        values = np.full((len(rows), len(columns)), np.nan)
        notes = np.zeros_like(values)
        for arm in arms:
            place = rows.index(arm.connector), columns.index(arm.mix)
            values[place], notes[place] = _shown(arm, measure), sum(arm.errors(measure)) / 2
        picture = axes.imshow(values, cmap="cividis", aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("mix")
        axes.set_title(title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        low, high = np.nanmin(values), np.nanmax(values)
        for (row, column), value in np.ndenumerate(values):
            dark = np.isnan(value) or value < (low + high) / 2
            text = "not run" if np.isnan(value) else f"{value:.1f}\n±{notes[row, column]:.1f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
        figure.colorbar(picture, ax=axes, fraction=0.06, pad=0.03).outline.set_visible(False)
    both[0].set_ylabel("connector")
    return figure


def kinds(comparison: Comparison) -> Figure | None:
    """Accuracy by kind of question, one panel a mix, with what guessing gives."""
    prefix = f"{UNDERSTANDING.name}/"
    names = dict.fromkeys(name for arm in comparison.arms for name in arm.metrics if name.startswith(prefix))
    measures = [Measure(name, name.removeprefix(prefix).replace("_", " "), "") for name in names]
    return _bars(comparison, measures, "VQA (%)", comparison.chance, "chance")


def fidelity(comparison: Comparison) -> Figure | None:
    """What is right in drawn scenes, one panel a mix, with what the image decoder itself can reach."""
    measures = [m for m in MEASURES if m.group == "generation" and m.rate and _known(comparison, m)]

    return _bars(comparison, measures, "right (%)", comparison.ceiling, "ceiling")


def _bars(
    comparison: Comparison,
    measures: Sequence[Measure],
    label: str,
    reference: Callable[[str], float | None],
    dashes: str,
) -> Figure | None:
    if not measures:
        return None
    panels = comparison.mixes
    size = (1.6 + 0.9 * len(measures), 0.7 + 1.9 * len(panels))
    figure, grid_of_axes = plt.subplots(
        len(panels), 1, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    width = 0.8 / len(comparison.connectors)
    for axes, name in zip(grid_of_axes[:, 0], panels, strict=True):
        for arm in (arm for arm in comparison.arms if arm.mix == name):
            shift = (comparison.connectors.index(arm.connector) + 0.5) * width - 0.4
            known = [(place, m) for place, m in enumerate(measures) if m.name in arm.metrics]
            axes.bar(
                [place + shift for place, _ in known],
                [_shown(arm, m) for _, m in known],
                width * 0.9,
                yerr=np.array([arm.errors(m) for _, m in known]).T if known else None,
                color=_colour(comparison, arm),
                error_kw={"elinewidth": 0.9, "ecolor": INK},
            )
        for place, m in enumerate(measures):
            if (level := reference(m.name)) is not None:
                axes.hlines(level * 100, place - 0.45, place + 0.45, INK, linestyles=[_DASHES], linewidth=1.3)
        axes.set_title(f"mix: {name}" if name else "")
        axes.set_ylabel(label)
        axes.set_ylim(0, 104)
        axes.set_xticks(range(len(measures)), [m.label for m in measures])
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y")
    handles: list[Any] = [
        Patch(color=pick(COLOURS, comparison.connectors, name), label=name) for name in comparison.connectors
    ]
    if any(reference(m.name) is not None for m in measures):
        handles.append(Line2D([], [], color=INK, linestyle=_DASHES, linewidth=1.3, label=dashes))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


def _save(
    plot: Callable[[Comparison], Figure | None], comparison: Comparison, path: Path, title: str, caption: str
) -> Plot | None:
    with styled():
        figure = plot(comparison)
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier comparison
            return None
        save(figure, path)
    return Plot(path, title, caption)


def _legend(axes: Axes, comparison: Comparison, more: list[Any]) -> None:
    connectors = [
        Line2D([], [], color=pick(COLOURS, comparison.connectors, name), linewidth=6, label=name)
        for name in comparison.connectors
    ]
    mixes = [
        Line2D([], [], color=INK, linestyle="", marker=pick(MARKERS, comparison.mixes, name), label=name)
        for name in comparison.mixes
    ]
    titles = [Line2D([], [], linestyle="", label=word) for word in ("connector", "mix")]
    handles = [titles[0], *connectors, titles[1], *mixes, *more]
    legend = axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1.4)
    for text in legend.get_texts():
        if text.get_text() in ("connector", "mix"):
            text.set_color(QUIET)


def _colour(comparison: Comparison, arm: Arm) -> str:
    return pick(COLOURS, comparison.connectors, arm.connector)


def _marker(comparison: Comparison, arm: Arm) -> str:
    return pick(MARKERS, comparison.mixes, arm.mix)


def _both(arm: Arm) -> bool:
    return UNDERSTANDING.name in arm.metrics and GENERATION.name in arm.metrics


def _known(comparison: Comparison, measure: Measure) -> bool:
    return any(measure.name in arm.metrics for arm in comparison.arms)


def _shown(arm: Arm, measure: Measure) -> float:
    return arm.metrics[measure.name] * measure.factor
