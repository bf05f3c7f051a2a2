"""What the lab's training costs over a plain loop, and what its layouts save.

    .venv/bin/python benchmarks/step.py [--steps 25] [--repeats 5] [--write]

The arm of `params.yaml`, its instruct stage: `lab` is `fit`, with Lightning, loader, MLflow and progress
lines; `plain` is a loop over the same modules, batches and optimizer. Both have one thread and the layout
that the lab chooses; the other rows are the plain loop in one layout each. The lab makes batches in a thread
of its own, the loop between its steps: by the processor's time the thread is paid for, with what two threads
of one core take from each other; on the clock it hides behind the steps where a processor is free for it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import page
import pytorch_lightning as pl
import torch
from turns import assert_equal, ratio, take_turns

MARKS = ("<!-- step: begin -->", "<!-- step: end -->")
WARMUP = 3  # steps of a turn that are not counted
TAIL = 5  # steps of the lab behind those counted: batches are then as far ahead of them as at their start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=25, help="of a turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        text = compare(args.steps, args.repeats, Path(folder))
    print(text)
    if args.write:
        page.write_between(page.ROOT / "docs" / "benchmarks.md", MARKS, text)


def compare(steps: int, repeats: int, folder: Path) -> str:
    from lab.tracking import start_run

    arms = Arms(steps)
    with start_run(experiment="benchmark", arm=None, stage="instruct", name="step") as run:
        contestants: dict[str, Callable[[], float | None]] = {
            "lab": lambda: arms.lab(folder, run)[1],
            **{word: partial(arms.seconds, word) for word in ("auto", "padded", "buckets", "packed")},
        }
        said = assert_equal("lab and plain", arms.lab(folder, run)[0], arms.plain("auto")[0], 1e-5)
        padded = assert_equal("layouts", arms.plain("padded")[0][:5], arms.plain("packed")[0][:5], 1e-3)
        times = take_turns(contestants, repeats)
    clock = {name: np.array(arms.clock[name][-repeats:]) for name in times}
    columns = [
        "a step, ms of processor",
        "over the plain loop",
        "a step, ms on the clock",
        "over the plain loop",
    ]
    rows = [["", *columns, "over padding", "useful tokens"]]
    for name, seconds in times.items():
        kinds = []
        for spent, plain in ((seconds, times["auto"]), (clock[name], clock["auto"])):
            kinds += [f"{1e3 * float(np.median(spent)) / (steps - WARMUP):.1f}"]
            kinds += [ratio(spent, plain) if name == "lab" else ""]
        against = "" if name == "lab" else ratio(seconds, times["padded"])
        useful = "" if name == "lab" else f"{arms.useful[name]:.1%}"
        shown = {"lab": "the lab", "auto": "plain loop, the lab's layout"}.get(name, f"plain loop, {name}")
        rows.append([shown, *kinds, against, useful])
    return f"{page.machine()}\n\nLab and plain loop: {said}; layouts: {padded}.\n\n{page.table(rows)}"


class Arms:
    """The default pipeline's first arm, as often as it is wanted, with the same weights and batches."""

    def __init__(self, steps: int) -> None:
        from lab.config import load_params
        from lab.graph.context import world_of
        from lab.samples.mixture import Mixture
        from lab.samples.tokenizer import Tokenizer
        from lab.scenes.digits import load_patches, split_instances
        from lab.scenes.tasks import SceneTasks
        from lab.scenes.world import WorldSplit, compose

        self.steps, self.params = steps, load_params(page.ROOT / "params.yaml")
        self.settings = self.params.fitted("instruct")
        world = world_of(self.params)
        digits = load_patches(split_instances(0)["train"], world.variants, 0)
        self.tasks = SceneTasks(
            WorldSplit(world, digits, compose(world, digits, 5000, 0)), self.params.world.turns
        )
        self.tokenizer = Tokenizer.of_words(self.tasks.language.vocabulary())
        mix = next(iter(self.params.mixes.values()))
        self.data = Mixture(self.tasks.sources(), mix, (steps + TAIL) * self.settings.batch_size, 0)
        self.useful: dict[str, float] = {}
        self.clock: dict[str, list[float]] = defaultdict(list)  # seconds of each turn that count

    def module(self) -> tuple[Any, Any]:
        """A fresh module and its collation."""
        from lab.models.arm import new_arm
        from lab.training.modules import UnifiedTraining

        arm = new_arm(self.params, self.params.connectors[0], {}, self.tokenizer)
        module = UnifiedTraining.of(arm, replace(self.settings, steps=self.steps))
        torch.manual_seed(0)
        return module, arm.collate(tuple(self.tasks.tasks))

    def lab(self, folder: Path, run: Any) -> tuple[list[float], float]:
        """Losses of the steps, and processor seconds of those after the warm-up."""
        from lab.training.fit import FitSettings, fit

        module, collate = self.module()
        watch = Watch(self.steps)
        names = FitSettings.__dataclass_fields__
        settings = {key: value for key, value in vars(self.settings).items() if key in names}
        steps = self.steps + TAIL
        settings |= {"steps": steps, "checkpoint_every": steps + 1, "log_every": 10}
        with tempfile.TemporaryDirectory(dir=folder) as work, contextlib.redirect_stderr(io.StringIO()):
            fit(module, self.data, collate, FitSettings(**settings), Path(work), "step", run, [watch])
        self.clock["lab"].append(watch.clock)
        return [float(loss) for loss in watch.losses], watch.seconds

    def plain(self, layout: str) -> tuple[list[float], float]:
        """The same as a loop, in one layout."""
        from torch.utils.data import DataLoader

        from lab.config import TrainerParams
        from lab.samples.mixture import StepBatches
        from lab.samples.step import StepCollate
        from lab.training.speed import plan_of
        from lab.training.stage_module import warmup_cosine

        module, collate = self.module()
        plan = plan_of(TrainerParams(layout=layout), module, "cpu", False)
        batches = StepBatches(self.settings.batch_size, self.steps, lambda: 0)
        loader = DataLoader(self.data, batch_sampler=batches, collate_fn=StepCollate(collate, 1, plan, False))
        optimizer = module.configure_optimizers()["optimizer"]
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, warmup_cosine(self.steps, self.settings.warmup)
        )
        module.on_train_start()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        losses: list[torch.Tensor] = []
        real = computed = 0
        for step, batch in enumerate(loader):
            if step == WARMUP:
                start, since = time.process_time(), time.perf_counter()
            optimizer.zero_grad()
            losses_of = module.model(batch)
            loss = losses_of.text + module.image_weight * losses_of.image
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, self.settings.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            real += int(batch.mask.sum())
            computed += batch.ids.numel() if batch.layout is None else batch.layout.positions
        seconds = time.process_time() - start
        self.clock[layout].append(time.perf_counter() - since)
        self.useful[layout] = real / computed
        return [float(loss) for loss in losses], seconds

    def seconds(self, layout: str) -> float:
        """Processor seconds of the loop in one layout."""
        return self.plain(layout)[1]


class Watch(pl.Callback):
    """Keeps losses, and the time of processor and clock from the end of the warm-up to the end of a step.

    Args:
        steps: the last one that counts.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[torch.Tensor] = []
        self.seconds = self.clock = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step <= self.steps:
            self.losses.append(outputs["loss"].detach())
        if trainer.global_step == WARMUP:
            self._start, self._since = time.process_time(), time.perf_counter()
        elif trainer.global_step == self.steps:
            self.seconds = time.process_time() - self._start
            self.clock = time.perf_counter() - self._since


if __name__ == "__main__":
    main()
