"""How fast data are made ready for a step, on one thread, and what that takes in memory as they grow tenfold.

    .venv/bin/python benchmarks/data.py [--write]

Rates are per second of processor time, so that a busy machine changes little; medians of five. Photographs
are random textures of their size, stored as JPEG (quality 90) or PNG. `--write` puts the tables into
docs/benchmarks.md. Linux only: the peak of memory is the kernel's.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from page import ROOT, machine, table, write_between
from PIL import Image

from lab.config import DataSetParams
from lab.samples.batch import Collate
from lab.samples.datasets import DataSet, DataSource
from lab.samples.images import LIMIT, Fitting, decode, fitted
from lab.samples.indexing import build
from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.language import Language
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose

PAGE = ROOT / "docs" / "benchmarks.md"
BATCH, SECONDS, REPEATS = 32, 0.5, 5
ROWS = (1_000, 10_000)  # of the data sets whose memory is compared
WORDS = 400  # of an answer there

_READ = """
import re, sys
from pathlib import Path
from lab.config import DataSetParams
from lab.samples.datasets import DataSet, DataSource
from lab.samples.index import Index
from lab.samples.indexing import build
from lab.scenes.world import World
root, made = Path(sys.argv[1]), Path(sys.argv[2])
index = Index(root, made) if made.exists() else build(root, "llava", 10**8, made)
source = DataSource(DataSet("data", DataSetParams("", "llava"), index), "train", World())
if sys.argv[3] == "read":
    for row in range(1000):
        for segment in source.sample(row * 7919 % len(source), 0).segments:
            segment.pixels
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rates, memory = table([["", "samples/s"], *speeds(Path(folder))]), table(growth(Path(folder)))
    print(rates, memory, sep="\n\n")
    if write:
        text = f"{machine()}\n\n{rates}\n\n{memory}"
        write_between(PAGE, ("<!-- data: begin -->", "<!-- data: end -->"), text)


def speeds(folder: Path) -> list[list[str]]:
    """Rows of the first table."""
    world = World()
    digits = load_patches(split_instances(0)["train"], world.variants, 0)
    split = WorldSplit(world, digits, compose(world, digits, 2_000, 0))
    tasks = SceneTasks(split)
    tokenizer = Tokenizer.of_words(tasks.language.vocabulary())
    collate = Collate(tokenizer, 16, 16, tuple(tasks.tasks))
    samples = [tasks.sample("vqa", row, 0) for row in range(BATCH)]
    collate(samples)  # renders the images, once

    def made() -> None:
        for row in range(BATCH):
            for segment in tasks.sample("vqa", row, 1).segments:
                _ = segment.pixels

    rows = [
        ["scene composed", rate(lambda: compose(world, digits, 1_000, 1), 1_000)],
        ["scene rendered, 32 px", rate(lambda: split.pixels(np.arange(BATCH)), BATCH)],
        ["vqa sample: scene, questions, pixels", rate(made, BATCH)],
        ["collation of vqa samples", rate(lambda: collate(samples), BATCH)],
    ]
    for name, size, kind in (
        ("JPEG 640 x 480", (640, 480), "JPEG"),
        ("JPEG 4000 x 3000", (4000, 3000), "JPEG"),
        ("PNG 640 x 480", (640, 480), "PNG"),
    ):
        data = photograph(size, kind)
        for side in (224, 336):
            fitting = Fitting(side)

            def seen(data: bytes = data, fitting: Fitting = fitting) -> None:
                fitted(decode(data, LIMIT, fitting.size), fitting)

            rows.append([f"{name} to {side} px", rate(seen, 1)])
    source = photographs(folder / "photographs")
    own = Tokenizer.of_words(Language(source.world).vocabulary(), source.data.words())
    lay = Collate(own, 16, 16, ("data",))
    batches = iter(range(10**9))

    def read() -> None:
        first = next(batches) * BATCH
        lay([source.sample((first + row) % len(source), 0) for row in range(BATCH)])

    rows.append(["data set: row, JPEG 640 x 480 to 224 px, collation", rate(read, BATCH)])
    return rows


def growth(folder: Path) -> list[list[str]]:
    """The second table: peak memory of a process that indexes, and of one that reads."""
    found: dict[str, list[float]] = {"index": [], "read": []}
    sizes = []
    for count in ROWS:
        root = folder / f"talks-{count}"
        root.mkdir()
        (root / "0.jpg").write_bytes(photograph((64, 48), "JPEG"))
        records = [conversation(number, "0.jpg", f"{number} {'word ' * WORDS}") for number in range(count)]
        (root / "talks.json").write_text(json.dumps(records))
        sizes.append((root / "talks.json").stat().st_size / 2**20)
        for what in found:
            words = [sys.executable, "-c", _READ, str(root), str(folder / f"index-{count}"), what]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[what].append(int(done.stdout) / 1024)
    head = ["", *(f"{count:,} rows ({size:.0f} MB)" for count, size in zip(ROWS, sizes, strict=True))]
    more = ROWS[1] - ROWS[0]
    return [
        [*head, "a row more, bytes"],
        *(
            [f"{name}, peak MB", *(f"{one:.1f}" for one in used), f"{(used[1] - used[0]) * 2**20 / more:.0f}"]
            for name, used in (("building the index", found["index"]), ("reading 1,000 rows", found["read"]))
        ),
    ]


def photographs(root: Path) -> DataSource:
    """A data set of different JPEG files with a conversation each."""
    root.mkdir()
    records = []
    for number in range(2 * BATCH):
        (root / f"{number}.jpg").write_bytes(photograph((640, 480), "JPEG", number))
        records.append(conversation(number, f"{number}.jpg", "It is a texture."))
    (root / "talks.json").write_text(json.dumps(records))
    index = build(root, "llava", LIMIT, root.with_name("index"))
    data = DataSet("data", DataSetParams("", "llava"), index)
    return DataSource(data, "train", World(224, grid=1, max_digits=1))


def conversation(number: int, image: str, reply: str) -> dict[str, object]:
    """A record of LLaVA's."""
    turns = [{"from": "human", "value": "<image> What is it?"}, {"from": "gpt", "value": reply}]
    return {"id": str(number), "image": image, "conversations": turns}


def photograph(size: tuple[int, int], kind: str, seed: int = 0) -> bytes:
    """A random texture: coarse patches and fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, 6, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind, quality=90)
    return buffer.getvalue()


def rate(make: Callable[[], object], samples: int) -> str:
    """Samples a second of processor time: the median of several, with their range."""
    make()
    found = []
    for _ in range(REPEATS):
        start, done = time.process_time(), 0
        while time.process_time() - start < SECONDS / REPEATS or not done:
            make()
            done += samples
        found.append(done / (time.process_time() - start))
    return f"{median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"


if __name__ == "__main__":
    main()
