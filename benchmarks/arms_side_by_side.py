"""Two arms at once with one thread each, or one arm after the other with two threads?

    .venv/bin/python benchmarks/arms_side_by_side.py [--seconds 7] [--repeats 3] [connector=q_former ...]

Each process trains an arm of `params.yaml` as the stage `instruct` does: batches made on the fly, forward,
backward, clipping, optimizer. Weights are fresh, which changes no cost. The processes take turns, several
times over: the pair with one thread each, then the single one with two. Needs two free cores: two threads of
one process wait for each other, and something else on the machine makes that wait long.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 2  # steps at the start of a turn that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as for `lab train`")
    parser.add_argument("--seconds", type=float, default=7.0, help="of each turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each kind (%(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.overrides, args.seconds)
        return
    pair = [start(1, args.overrides, args.seconds) for _ in range(2)]
    alone = [start(2, args.overrides, args.seconds)]
    for worker in (*pair, *alone):
        said(worker)  # that it is ready
    print(f"{'':10}{'two x 1 thread':>16}{'one x 2 threads':>17}{'ratio':>8}   steps/s, all arms together")
    ratios = []
    for repeat in range(args.repeats):
        first, second = turn(pair), turn(alone)
        ratios.append(first / second)
        print(f"repeat {repeat + 1:<3}{first:16.2f}{second:17.2f}{first / second:8.2f}", flush=True)
    print(f"{'median':43}{median(ratios):8.2f}")
    for worker in (*pair, *alone):
        worker.communicate()  # closes its input, which ends it


def start(threads: int, overrides: Sequence[str], seconds: float) -> subprocess.Popen[str]:
    """A process that trains whenever it gets a line."""
    command = [sys.executable, __file__, "--worker", "--seconds", str(seconds), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def turn(workers: Sequence[subprocess.Popen[str]]) -> float:
    """Steps a second of all workers together, while only they work."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return sum(float(said(worker)) for worker in workers)


def said(worker: subprocess.Popen[str]) -> str:
    """The next line of a worker.

    Raises:
        SystemExit: it has ended; why stands above.
    """
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker has ended")
    return line.strip()


def work(overrides: Sequence[str], seconds: float) -> None:
    """Says when it is ready; then for every line on its input trains a while and says the steps a second."""
    steps = training(overrides)
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(WARMUP):
            next(steps)
        began, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            next(steps)
            done += 1
        print(done / elapsed, flush=True)


def training(overrides: Sequence[str]) -> Iterator[None]:
    """An arm, ready to train; endless, a step at a time."""
    import torch

    from lab.config import load_params
    from lab.graph.context import world_of
    from lab.models.arm import new_arm
    from lab.samples.mixture import Mixture
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.digits import load_patches, split_instances
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import WorldSplit, compose
    from lab.training.modules import UnifiedTraining

    params = load_params(ROOT / "params.yaml", overrides)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings, mix = params.fitted("instruct"), next(iter(params.mixes.values()))
    world = world_of(params)
    digits = load_patches(split_instances(params.seed)["train"], world.variants, params.seed)
    tasks = SceneTasks(WorldSplit(world, digits, compose(world, digits, 20_000, 0)), params.world.turns)
    arm = new_arm(params, params.connectors[0], {}, Tokenizer.of_words(tasks.language.vocabulary()))
    module = UnifiedTraining.of(arm, settings)
    module.on_train_start()
    optimizers: Any = module.configure_optimizers()
    optimizer = optimizers["optimizer"]
    collate = arm.collate(tuple(tasks.tasks))
    data = Mixture(tasks.sources(), mix, 1 << 40, params.seed)

    def steps() -> Iterator[None]:
        for step in itertools.count():
            first = step * settings.batch_size
            batch = collate([data[first + row] for row in range(settings.batch_size)])
            optimizer.zero_grad()
            module.training_step(batch, step).backward()
            torch.nn.utils.clip_grad_norm_(arm.model.parameters(), settings.clip)
            optimizer.step()
            yield

    return steps()


if __name__ == "__main__":
    main()
