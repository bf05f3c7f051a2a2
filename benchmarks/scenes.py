"""How fast the built-in world makes scenes, pixels and training samples, on one thread.

    .venv/bin/python benchmarks/scenes.py

A sample of one task is made from its scene and laid out in a batch, as a training loader does: sentences,
rendering and tokens included. Rates are per second of processor time, so that a busy machine changes little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lab.samples.batch import Collate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose

SCENES = 20_000
BATCH = 64
SECONDS = 0.5  # of processor time, each row


def main() -> None:
    torch.set_num_threads(1)
    world = World()
    digits = load_patches(split_instances(0)["train"], world.variants, 0)
    split = WorldSplit(world, digits, compose(world, digits, SCENES, 0))
    tasks = SceneTasks(split)
    tokenizer = Tokenizer.of_words(tasks.language.vocabulary())
    collate = Collate(tokenizer, 16, 16, tuple(tasks.tasks))

    def pixels(number: int) -> None:
        split.pixels(np.arange(number * BATCH, (number + 1) * BATCH) % SCENES)

    def samples(task: str, number: int) -> None:
        first = number * BATCH % (SCENES - BATCH)
        collate([tasks.sample(task, row, number) for row in range(first, first + BATCH)])

    print(f"{'':24}{'scenes/s':>12}")
    show("compose", rate(lambda number: compose(world, digits, 2_000, number), 2_000))
    show("render", rate(pixels, BATCH))
    for task in tasks.tasks:
        show(f"samples: {task}", rate(partial(samples, task), BATCH))


def rate(make: Callable[[int], object], scenes: int) -> float:
    """Scenes a second of `make(1)`, `make(2)`, ..., each of which makes `scenes`; `make(0)` warms up."""
    make(0)
    start, done = time.process_time(), 0
    while (elapsed := time.process_time() - start) < SECONDS:
        done += 1
        make(done)
    return done * scenes / elapsed


def show(name: str, value: float) -> None:
    print(f"{name:24}{value:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
