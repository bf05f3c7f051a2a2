"""What was consumed is counted exactly, over resumes and processes, and its hash proves it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.samples.batch import Collate
from lab.samples.mixture import Mixture
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.training.consumption import AMOUNTS, Tallied
from lab.training.feed import AHEAD, Feed
from lab.training.fit import FitSettings
from lab.training.stage_module import StageModule

Training = Callable[..., tuple[StageModule, Any]]
Together = Callable[..., list[Any]]


def consumed(record: Any) -> dict[str, Any]:
    return {name: value for name, value in record.costs.items() if name.startswith("consumed/")}


def test_amounts_are_those_of_the_samples(
    training: Training, tasks: SceneTasks, settings: FitSettings
) -> None:
    """Counted again from the samples of the mix, one by one."""
    found = consumed(training("unified", "whole")[1])
    mix = Mixture(tasks.sources(), {"vqa": 1.0, "text_to_image": 2.0, "interleaved": 1.0}, 96, seed=0)
    wanted: Counter[str] = Counter()
    for position in range(96):
        sample = mix[position]
        wanted[f"consumed/samples/{sample.task}"] += 1
        for segment in sample.segments:
            if segment.picture is not None:
                kind = "drawn" if segment.supervised else "read"
                wanted[f"consumed/images_{kind}/{sample.task}"] += 1
    for source in ("vqa", "text_to_image", "interleaved"):
        for amount in ("samples", "images_read", "images_drawn"):
            name = f"consumed/{amount}/{source}"
            assert found[name] == wanted[name]
        assert found[f"consumed/passes/{source}"] == wanted[f"consumed/samples/{source}"] / len(tasks)
        assert found[f"consumed/share/{source}"] == wanted[f"consumed/samples/{source}"] / 96
    assert found["consumed/share/text_to_image"] == 0.5
    assert sum(found[f"consumed/token_share/{source}"] for source in mix.names) == pytest.approx(1)


def test_tokens_are_those_of_the_batches(training: Training) -> None:
    record = training("unified", "whole")[1]
    tokens = [value for name, value in record.costs.items() if name.startswith("consumed/tokens/")]
    assert sum(tokens) == record.costs["cost/tokens"]


def test_killed_amid_an_epoch_nothing_is_repeated_or_skipped(
    training: Training, at: Any, settings: FitSettings
) -> None:
    """kill -9 at step 8 of 12; the last checkpoint is of step 5."""
    expected = consumed(training("unified", "whole")[1])
    assert len(expected["consumed/ids"]) == 64

    def killed() -> None:
        training("unified", "cut", settings, at(8, lambda trainer: os.kill(os.getpid(), signal.SIGKILL)))

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    continued = training("unified", "cut")[1]
    assert min(continued.steps) == 6
    assert consumed(continued) == expected


def test_a_checkpoint_tells_what_was_consumed(
    training: Training, at: Any, settings: FitSettings, tmp_path: Path
) -> None:
    expected = consumed(training("unified", "five", replace(settings, steps=5))[1])
    training("unified", "whole", replace(settings, steps=9))
    state = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["callbacks"]["Consumption"]
    assert state["chain"] == expected["consumed/ids"]
    assert {f"consumed/{amount}/{source}": number for source, amount, number in state["amounts"]}.items() <= (
        expected.items()
    )


@pytest.mark.parametrize("kind", ["unified", "contrastive"])
def test_two_processes_consume_what_one_does(training: Training, together: Together, kind: str) -> None:
    one = consumed(training(kind, "one", quiet=True)[1])
    two, other = together(2, lambda: consumed(training(kind, "two", quiet=True)[1]))
    assert two == other == one
    assert ("consumed/share/vqa" in one) == (kind == "unified")


def test_the_hash_sees_order_repetition_and_omission(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    tallied = Tallied(Collate(tokenizer, 16, 16, tuple(tasks.tasks)), 4, slice(None))
    items = [(place, "vqa", tasks.sample("vqa", place, 0)) for place in range(8)]

    def ids(*rows: int) -> int:
        return tallied([(place, "vqa", items[row][2]) for place, row in enumerate(rows)])[1].ids

    assert ids(0, 1, 2, 3) == ids(0, 1, 2, 3)
    assert len({ids(0, 1, 2, 3), ids(1, 0, 2, 3), ids(0, 1, 2, 2), ids(0, 1, 2, 4)}) == 4
    halves = [tallied([items[place] for place in rows])[1] for rows in ((0, 2), (1, 3))]
    assert sum(half.ids for half in halves) % 2**128 == ids(0, 1, 2, 3)
    amounts = sum((half.amounts for half in halves), Counter[tuple[str, str]]())
    assert amounts == tallied(items[:4])[1].amounts
    assert {amount for _, amount in amounts} < set(AMOUNTS)


class Numbers:
    """A loader that says what it was asked for."""

    def __init__(self, fails: int | None = None) -> None:
        self.made, self.fails = list[int](), fails

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        for number in range(10):
            if number == self.fails:
                raise ValueError("broken image")
            self.made.append(number)
            yield number


def feed(loader: Numbers) -> Feed:
    return Feed(loader, lambda samples: samples)


def test_batches_come_in_order_and_only_so_many_ahead() -> None:
    loader = Numbers()
    made = feed(loader)
    batches = iter(made)
    assert next(batches) == 0
    for _ in range(200):
        if len(loader.made) == AHEAD + 2:  # one taken, those ahead, and one in hand
            break
        threading.Event().wait(0.01)
    assert len(loader.made) == AHEAD + 2
    assert list(batches) == list(range(1, 10))
    made.close()
    assert made.waited > 0


def test_what_breaks_breaks_where_its_batch_is_asked_for() -> None:
    made = feed(Numbers(fails=4))
    batches = iter(made)
    assert [next(batches) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="broken image"):
        next(batches)
    made.close()


def test_closed_amid_its_work_the_thread_is_gone() -> None:
    before = threading.active_count()
    made = feed(Numbers())
    next(iter(made))
    made.close()
    assert threading.active_count() == before
