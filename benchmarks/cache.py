"""Cached features and packed rows, each alone and together, from small encoders to large ones.

    .venv/bin/python benchmarks/cache.py [--rounds 7] [--steps 2] [--write]

A step is what the stage `instruct` does: samples made and laid out, forward, backward, clipping, optimizer;
connector and language model train, the encoder is frozen. The four ways are on the same samples, have the
same losses (checked first), and take turns: A B C D D C B A in every round. What is shown is how many times
as many samples a second a way gets done as the one with neither: the median over rounds, and its 95%
interval (bootstrap). One thread; seconds are of its processor, so that a busy machine changes little, and
features are in memory after their first round. How long a read from disk takes is measured apart, as
`cache: auto` does it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from page import ROOT, machine, table, write_between

from lab.config import TrainerParams
from lab.graph.features.images import Images
from lab.graph.features.timing import Times, measure
from lab.models.cached import BATCH as ENCODED
from lab.models.cached import encode, encode_all
from lab.models.unified import UnifiedModel
from lab.registry import build
from lab.samples.batch import Batch, Collate, images_of
from lab.samples.features import Features, FeatureWriter
from lab.samples.mixture import Mixture
from lab.samples.step import StepCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose
from lab.training.modules import UnifiedTraining
from lab.training.speed import plan_of

IMAGE, PATCH, WINDOW = 64, 8, 2  # px; 64 tokens of the encoder, 16 of the language model
BATCH = 16
MIX = {"caption": 1, "inventory": 1, "vqa": 2}
SIZES: tuple[tuple[str, dict[str, int], dict[str, int]], ...] = (
    ("1:10", {"dim": 64, "depth": 4}, {"dim": 192, "depth": 4}),
    ("1:3", {"dim": 96, "depth": 4}, {"dim": 160, "depth": 4}),
    ("1:1", {"dim": 128, "depth": 4}, {"dim": 128, "depth": 4}),
    ("3:1", {"dim": 192, "depth": 3}, {"dim": 96, "depth": 4}),
    ("10:1", {"dim": 192, "depth": 4}, {"dim": 64, "depth": 3}),
)
WAYS = {  # name -> whether features are cached, and the layout
    "neither": (False, "padded"),
    "cache": (True, "padded"),
    "packing": (False, "auto"),
    "both": (True, "auto"),
}
MARKS = ("<!-- cache: begin -->", "<!-- cache: end -->")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="of all ways at every size (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a turn (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = scenes()
    rows = [
        ["encoder : language model", *(f"{way}, x" for way in WAYS if way != "neither"), *TIMES],
    ]
    for name, encoder, decoder in SIZES:
        with TemporaryDirectory() as scratch:
            trial = Trial(tasks, encoder, decoder, args.rounds * args.steps + 1, Path(scratch))
            rows.append([f"{name} ({trial.parameters})", *gains(trial, args.rounds, args.steps)])
        print("  ".join(rows[-1]), flush=True)
    if args.write:
        write_between(ROOT / "docs" / "benchmarks.md", MARKS, f"{machine()}\n\n{table(rows)}")


TIMES = ("encoding, ms an image", "reading, ms an image", "pays after, uses")


def gains(trial: Trial, rounds: int, steps: int) -> list[str]:
    """Cells of a row."""
    trial.check()
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        turns = dict.fromkeys(WAYS, 0.0)
        for way in (*WAYS, *reversed(WAYS)):
            began = time.process_time()
            for step in range(steps):
                trial.step(way, number * steps + step)
            turns[way] += time.process_time() - began
        for way, seconds in turns.items():
            spent[way].append(seconds)
    base = np.array(spent.pop("neither"))
    times = trial.times
    uses = (times.encoding + times.writing) / (times.encoding - times.reading)
    shown = (
        f"{1e3 * times.encoding:.2f}",
        f"{1e3 * times.reading:.3f}",
        f"{uses:.2f}" if uses > 0 else "never",
    )
    return [*(interval(base / np.array(seconds)) for seconds in spent.values()), *shown]


def interval(ratios: np.ndarray) -> str:
    """Median and 95% interval of ratios (R,)."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"


@dataclass
class Trial:
    """A system of one size, its samples, and the features of their images.

    Args:
        tasks: of the built-in world.
        encoder, decoder: settings.
        steps: that there are samples for.
        scratch: folder for features.
    """

    tasks: SceneTasks
    encoder: Mapping[str, int]
    decoder: Mapping[str, int]
    steps: int
    scratch: Path

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        tokenizer = Tokenizer.of_words(self.tasks.language.vocabulary())
        vit = {"name": "vit", "patch_size": PATCH, "num_heads": 4, "mlp_ratio": 4.0, **self.encoder}
        encoder = build("encoder", vit, IMAGE).eval()
        llama = {"name": "llama", "num_heads": 4, "mlp_ratio": 3.0, **self.decoder}
        decoder = build("text_decoder", llama, len(tokenizer))
        shuffle = {"name": "pixel_shuffle", "factor": WINDOW}
        connector = build("connector", shuffle, encoder.dim, decoder.dim, encoder.num_tokens)
        fusion = build("fusion", "sequence", decoder.dim, len(decoder.layers), connector.num_tokens)
        self.model = UnifiedModel(encoder, connector, decoder, fusion)
        self.parameters = " : ".join(f"{millions(part):.2f}M" for part in (encoder, decoder))
        rates = {"connector": 1e-3, "text_decoder": 1e-3}
        schedule = {"learning_rates": rates, "steps": self.steps, "warmup": 1, "weight_decay": 0.05}
        self.module = UnifiedTraining(self.model, list(rates), 1.0, **schedule)
        self.module.on_train_start()
        optimizers: Any = self.module.configure_optimizers()
        self.optimizer = optimizers["optimizer"]
        self.samples = Mixture(self.tasks.sources(), MIX, self.steps * BATCH, seed=0)
        features = self._features(encoder)
        self.collates = {
            way: self._collate(tokenizer, features if cached else None, layout)
            for way, (cached, layout) in WAYS.items()
        }

    def _features(self, encoder: Any) -> Features:
        images, encode_on = Images(), partial(encode, encoder, None)
        images.add_mixture(self.samples)
        writer = FeatureWriter(self.scratch, (encoder.num_tokens, encoder.dim), "fp32", ENCODED)
        encode_all(encode_on, images, writer)
        folder = self.scratch / "features"
        folder.mkdir()
        writer.publish(folder, images.keys, {"key": {}})
        pixels = images_of(images[:ENCODED])
        self.times: Times = measure(
            lambda: images_of(images[:ENCODED]),
            lambda: encode_on(pixels),
            encode_on(pixels),
            "fp32",
            self.scratch,
        )
        return Features(folder, {})

    def _collate(self, tokenizer: Tokenizer, features: Features | None, layout: str) -> StepCollate:
        collate = Collate(tokenizer, self.model.tokens_read, 0, tuple(self.tasks.tasks), features=features)
        plan = plan_of(TrainerParams(layout=layout), self.module, "cpu", sharded=False)
        return StepCollate(collate, 1, plan, by_sample=False)

    def batch(self, way: str, number: int) -> Batch:
        """The batch of a step."""
        first = number * BATCH
        batch: Batch = self.collates[way]([self.samples[first + row] for row in range(BATCH)])
        return batch

    def step(self, way: str, number: int) -> None:
        """An optimizer step."""
        self.optimizer.zero_grad()
        self.module.training_step(self.batch(way, number), number).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def check(self) -> None:
        """Warms up, and sees that all ways have the losses of the first.

        Raises:
            SystemExit: they differ by more than rounding.
        """
        with torch.no_grad():
            losses = {way: float(self.module(self.batch(way, 0))) for way in WAYS}
        if max(losses.values()) - min(losses.values()) > 1e-5 * losses["neither"]:
            raise SystemExit(f"losses differ: {losses}")
        for way in WAYS:
            self.step(way, 0)


def millions(part: Any) -> float:
    """Parameters of a part."""
    return float(sum(parameter.numel() for parameter in part.parameters()) / 1e6)


def scenes() -> SceneTasks:
    """The built-in world with larger images."""
    world = World(image_size=IMAGE)
    digits = load_patches(split_instances(0)["train"], world.variants, 0)
    return SceneTasks(WorldSplit(world, digits, compose(world, digits, 4000, 0)), turns=4)


if __name__ == "__main__":
    main()
