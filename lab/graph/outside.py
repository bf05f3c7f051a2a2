"""`lab eval RUN --data NAME`: what a trained arm answers to a registered data set; measured once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.config import SPLITS, load_params
from lab.errors import LabError, nearest
from lab.graph.arm import find_arm
from lab.graph.datasets import entry_of, hash_of, locate, open_data_set
from lab.graph.evaluations import RESULTS, Material, remembered
from lab.graph.node import content_of, identify

if TYPE_CHECKING:
    from lab.evaluation.figures import Figure
    from lab.evaluation.outside import Reply
    from lab.samples.datasets import DataSource

_BATCH = 50  # questions at once


def evaluate_on(
    run: str,
    name: str,
    protocols: Sequence[str],
    split: str | None,
    samples: int,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measures an arm on a data set.

    Args:
        run: a trained arm (see `find_arm`).
        name: of a data set in the params.yaml of the current folder.
        protocols: of lab/evaluation/outside.py; none for the one that the data set is made for.
        split: train, validation or test; None for the last of these that has rows.
        samples: at most so many rows, the first ones; 0 for all.
        say: gets a line on what is done, reused or written.

    Returns:
        A result a protocol, as `evaluate_run` returns them, with `data` and `split`.

    Raises:
        LabError: there is no such arm, data set, protocol or split, or they do not fit.
    """
    from lab.evaluation.outside import PROTOCOLS, protocol_of, replies
    from lab.models.arm import load_arm
    from lab.samples.datasets import DataSource
    from lab.scenes.world import World

    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise LabError(f"no protocol '{protocol}' for data sets{nearest(protocol, PROTOCOLS)}")
    if samples < 0:
        raise LabError("--samples must be at least 0, which stands for all rows")
    if split is not None and split not in SPLITS:
        raise LabError(f"no split '{split}'{nearest(split, SPLITS)}")
    material, folder = Material(find_arm(run)), Path.cwd()
    entry = entry_of(name, load_params(folder / "params.yaml").datasets)
    data = open_data_set(name, entry, folder)
    chosen = split or next((one for one in reversed(SPLITS) if len(data.rows(one))), SPLITS[0])
    arm = load_arm(material.arm)
    size = arm.model.encoder.image_size
    source = DataSource(data, chosen, World(size, grid=1, max_digits=1, locations=_locations(material)))
    upstream = material.weights | {f"datasets/{name}": hash_of(locate(entry, folder))}
    parameters = {"samples": samples, "split": chosen, "locations": source.world.locations}
    parameters |= {key: value for key, value in vars(entry).items() if key not in ("path", "policy")}
    rows = range(min(samples or len(source), len(source)))
    asked = _Asked(lambda: replies(arm, source, rows, _BATCH))
    results = []
    for protocol in protocols or [protocol_of(source)]:
        content = content_of("eval", f"{name}/{protocol}", parameters, material.code, upstream)
        head = {"protocol": f"{name}/{protocol}", "shots": 0, "choice": "", "data": name, "split": chosen}
        score = partial(asked.scored, protocol, source, identify(content), say)
        results.append(remembered(head, content, f"{name}, {chosen}, {protocol}", say, score))
    return results


class _Asked:
    """Questions that are asked once, whatever protocols score their answers.

    Args:
        ask: gives the answers.
    """

    def __init__(self, ask: Callable[[], list[Reply]]) -> None:
        self._ask = ask

    @cached_property
    def replies(self) -> list[Reply]:
        return self._ask()

    def scored(
        self, protocol: str, source: DataSource, key: str, say: Callable[[str], None]
    ) -> Mapping[str, Figure]:
        """The figures of a protocol; the official results file is written beside them, where there is one."""
        from lab.evaluation.outside import figures_of
        from lab.evaluation.submission import submission

        found = figures_of(protocol, self.replies, source)
        if (file := submission(source.data.params.format, self.replies)) is not None:
            place = RESULTS / f"{key}-{file[0]}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(file[1])
            say(f"{source.data.name}: {len(self.replies)} answers in {place}")
        return found


def _locations(material: Material) -> int:
    """Location bins of the world that the arm was trained in; none where that is not known."""
    try:
        return material.world.locations
    except LabError:
        return 0
