"""What a stage has consumed, exactly, over all resumes and processes: by source, and as a hash of sample ids.

Every batch carries a tally of its samples, made with it. The hash is a chain over steps: that of a step is of
the one before and of the step's samples, each with its place in the step. Of these the sum is taken, so that
it does not matter which process had which sample; where anything is repeated, skipped or exchanged, the chain
is another one from there on.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import Dataset

from lab.samples.batch import Batch
from lab.samples.segments import Sample
from lab.training.collective import collected
from lab.training.feed import Feed

AMOUNTS = ("samples", "tokens", "supervised_tokens", "images_read", "images_drawn")
_WIDTH = 16  # bytes of a sample's hash


@dataclass(frozen=True)
class Tally:
    """What a step consumes of one process's samples.

    Attributes:
        ids: sum of the hashes of places and ids.
        amounts: (source, amount) -> number; nothing for stages that draw from no mix.
    """

    ids: int
    amounts: Counter[tuple[str, str]]


class Numbered(Dataset[tuple[int, str, Any]]):
    """A data set whose items say their position and their source.

    Args:
        dataset: position -> item.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self._source: Callable[[int], str] = getattr(dataset, "source_of", lambda position: "")

    def __getitem__(self, position: int) -> tuple[int, str, Any]:
        return position, self._source(position), self.dataset[position]


class Tallied:
    """Collates numbered items to (batch, tally).

    Args:
        collate: items -> batch.
        batch_size: samples a step, of all processes together.
        share: which of its items are tallied here; the others are where all processes have the whole batch.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any], batch_size: int, share: slice) -> None:
        self.collate, self.batch_size, self.share = collate, batch_size, share

    def __call__(self, items: Sequence[tuple[int, str, Any]]) -> tuple[Any, Tally]:
        batch = self.collate([item for *_, item in items])
        parts = getattr(batch, "parts", (batch,))
        ids = [one for part in parts for one in part.sample_ids]
        sizes = [size for part in parts for size in _sizes(part)]
        total, amounts = 0, Counter[tuple[str, str]]()
        for (position, source, item), name, size in list(zip(items, ids, sizes, strict=True))[self.share]:
            digest = hashlib.blake2b(f"{position % self.batch_size} {name}".encode(), digest_size=_WIDTH)
            total += int.from_bytes(digest.digest())
            if source:
                for amount, number in zip(AMOUNTS, (1, *size, *_images(item)), strict=True):
                    amounts[source, amount] += number
        return batch, Tally(total % 2 ** (8 * _WIDTH), amounts)


class Tallies:
    """Batches of a loader without their tallies, which wait in `waiting` until their step is over."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.waiting: deque[Tally] = deque()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self._without_tally, self.loader)

    def _without_tally(self, made: tuple[Any, Tally]) -> Any:
        self.waiting.append(made[1])
        return made[0]


class Consumption(pl.Callback):
    """Adds up what the steps of a stage consume; part of its checkpoints.

    Args:
        rows: source -> rows of one pass, nothing for stages that draw from no mix.

    Attributes:
        waited: seconds that the steps of rank 0 have waited for data, as of the last meeting.
    """

    def __init__(self, rows: Mapping[str, int]) -> None:
        self.rows = dict(rows)
        self._chain = ""
        self._steps: list[int] = []  # sums of ids of the steps that are not in the chain yet
        self._before: Counter[tuple[str, str]] = Counter()  # of all processes, up to the last meeting
        self._since: Counter[tuple[str, str]] = Counter()  # of this one, from then on
        self._waited = 0.0  # before this resume
        self.waited = 0.0

    def follow(self, tallies: Tallies, feed: Feed) -> None:
        """Says whose batches the steps are on, in order, and who knows for how long they waited."""
        self.tallies, self.feed = tallies, feed

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        tally = self.tallies.waiting.popleft()
        self._steps.append(tally.ids)
        self._since += tally.amounts

    def meet(self) -> None:
        """Puts together what the processes have counted; all of them call it."""
        found = collected((self._steps, self._since, self._waited + self.feed.waited))
        for step in zip(*(steps for steps, *_ in found), strict=True):
            total = sum(step) % 2 ** (8 * _WIDTH)
            self._chain = hashlib.sha256(f"{self._chain} {total:x}".encode()).hexdigest()
        for _, amounts, _ in found:
            self._before += amounts
        self._steps, self._since, self.waited = [], Counter(), found[0][-1]

    def costs(self, seconds: float) -> dict[str, float]:
        """How large a share of these seconds the steps waited for data, as of the last meeting."""
        return {"cost/data_wait_share": round(self.waited / seconds, 4) if seconds else 0.0}

    def shares(self) -> dict[str, float]:
        """`consumed/share/<source>` and `consumed/token_share/<source>`, as of the last meeting."""
        return self._shares("samples", "share") | self._shares("tokens", "token_share")

    def totals(self) -> dict[str, Any]:
        """What is in the metrics of a stage, as of the last meeting."""
        found: dict[str, Any] = self.shares() if self.rows else {}
        for source, rows in self.rows.items():
            for amount in AMOUNTS:
                found[f"consumed/{amount}/{source}"] = self._before[source, amount]
            found[f"consumed/passes/{source}"] = self._before[source, "samples"] / rows
        return found | {"consumed/ids": self._chain}

    def state_dict(self) -> dict[str, Any]:
        self.meet()
        amounts = [[source, amount, number] for (source, amount), number in self._before.items()]
        return {"chain": self._chain, "amounts": amounts, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._chain, self._waited = state["chain"], state["waited"]
        self._before = Counter({(source, amount): number for source, amount, number in state["amounts"]})

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.meet()

    def _shares(self, amount: str, name: str) -> dict[str, float]:
        total = sum(self._before[source, amount] for source in self.rows)
        return {
            f"consumed/{name}/{source}": self._before[source, amount] / total for source in self.rows if total
        }


def _sizes(batch: Any) -> Iterable[tuple[int, int]]:
    """Tokens and supervised tokens of each sample."""
    if isinstance(batch, Batch):
        tokens, supervised = batch.mask.sum(dim=1).tolist(), batch.supervised.sum(dim=1).tolist()
        return list(zip(tokens, supervised, strict=True))
    return [(0, 0)] * len(batch.sample_ids)


def _images(sample: Sample) -> tuple[int, int]:
    """Images that are read and drawn."""
    drawn = [segment.supervised for segment in sample.segments if segment.picture is not None]
    return drawn.count(False), drawn.count(True)
