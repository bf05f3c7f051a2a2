"""The lab against transformers' LLaVA with its Trainer: equal weights, samples, optimizer and precision.

    .venv/bin/python benchmarks/llava_trainer.py [--steps 8] [--repeats 4] [--write]

An arm with random weights is exported as a `LlavaForConditionalGeneration`, so both train the same model:
a frozen tower, a two-layer projector, a Llama. Theirs gets ids that were made beforehand, ours tokenises as
it goes. With cached features the tower is run once before, over all images. Losses are compared first. The
tower is smaller than the language model, then three times as large, then seven times with the projector
training alone, as in LLaVA's first stage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import page
import pytorch_lightning as pl
import torch
from torch import Tensor
from turns import assert_equal, ratio, take_turns

MARKS = ("<!-- llava: begin -->", "<!-- llava: end -->")
WARMUP = 2  # steps of a turn that are not counted
BATCH, RATE, CLIP = 16, 5e-4, 1.0
WORDS = [f"w{number}" for number in range(2000)]
SIDE = 112  # px of an image, of 49 tokens
BOTH, PROJECTOR = ("connector", "text_decoder"), ("connector",)
CASES = ((192, 4, BOTH), (384, 8, BOTH), (512, 10, PROJECTOR))  # width and layers of the tower, what trains
DECODER = {"name": "llama", "dim": 256, "depth": 4, "num_heads": 4, "tie_embeddings": False}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="of a turn (%(default)s)")
    parser.add_argument("--repeats", type=int, default=4, help="turns of each (%(default)s)")
    parser.add_argument("--write", action="store_true", help="the tables into docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    texts = [page.machine()]
    for width, layers, trained in CASES:
        with tempfile.TemporaryDirectory() as folder:
            both = Both(args.steps, Path(folder), tower(width, layers), trained)
            texts.append(compare(both, args.repeats))
        print(texts[-1], flush=True)
    if args.write:
        page.write_between(page.ROOT / "docs" / "benchmarks.md", MARKS, "\n\n".join(texts))


def tower(width: int, layers: int) -> dict[str, Any]:
    """Configuration of a vision tower."""
    return {
        "model_type": "clip_vision_model",
        "image_size": SIDE,
        "patch_size": 16,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }


def compare(both: Both, repeats: int) -> str:
    steps = both.steps
    theirs = both.theirs()[0]
    said = assert_equal("the lab and the Trainer", theirs, both.ours("auto")[0], 1e-4)
    assert_equal("cached features and the Trainer", theirs, both.ours("auto", cached=True)[0], 1e-4)
    times = take_turns(
        {
            "transformers, Trainer": lambda: both.theirs()[1],
            "the lab, padded": partial(both.seconds, "padded"),
            "the lab, padded, cached features": partial(both.seconds, "padded", cached=True),
            "the lab": partial(both.seconds, "auto"),
            "the lab, cached features": partial(both.seconds, "auto", cached=True),
        },
        repeats,
    )
    rows = [["", "samples/s", "useful tokens/s", "speed over transformers"]]
    counted = slice(WARMUP * BATCH, steps * BATCH)
    tokens = int(both.lengths[counted].sum())
    for name, seconds in times.items():
        median = float(np.median(seconds))
        over = ratio(times["transformers, Trainer"], seconds) if name != "transformers, Trainer" else ""
        rows.append([name, f"{(steps - WARMUP) * BATCH / median:.1f}", f"{tokens / median:,.0f}", over])
    parts = both.arm().model
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (parts.encoder, parts.text_decoder)]
    shares = f"padded to the longest, {both.useful:.0%} of positions are useful"
    alone = "; the projector trains alone" if both.trained == PROJECTOR else ""
    head = (
        f"A tower of {sizes[0]:.1f}M parameters, a language model of {sizes[1]:.1f}M, {BATCH} samples a "
        f"step{alone}; {shares}; {said}. Filling the cache took {both.filling:.1f} s of the processor for "
        f"{len(both.samples)} samples, once."
    )
    return f"{head}\n\n{page.table(rows)}"


class Both:
    """The same training twice, as often as it is wanted."""

    def __init__(self, steps: int, folder: Path, vision: dict[str, Any], trained: Sequence[str]) -> None:
        from lab.exchange.llava import export_llava
        from lab.samples.tokenizer import Tokenizer

        self.steps, self.folder, self.vision, self.trained = steps, folder, vision, trained
        self.tokenizer = Tokenizer.of_words(WORDS)
        self.samples = talks(steps * BATCH, np.random.default_rng(0))
        arm = self.arm()
        export_llava(arm, folder / "llava")
        collate = arm.collate(("vqa",))
        batches = [collate([sample]) for sample in self.samples]
        self.lengths = np.array([batch.ids.shape[1] for batch in batches])
        longest = self.lengths.reshape(steps, BATCH).max(axis=1)
        self.useful = float(self.lengths.sum() / (longest.sum() * BATCH))
        self.rows = [self.row(arm, batch) for batch in batches]
        began = time.process_time()
        self.features = self.cache(arm)
        self.filling = time.process_time() - began

    def cache(self, arm: Any) -> Any:
        """Features of all images."""
        from lab.graph.features.images import Images
        from lab.models.cached import BATCH as ENCODED
        from lab.models.cached import encode, encode_all, facts_of
        from lab.samples.features import Features, FeatureWriter

        images, encoder, place = Images(), arm.model.encoder.eval(), self.folder / "features"
        images.add_mixture(self.samples)  # type: ignore[arg-type]
        place.mkdir()
        writer = FeatureWriter(place / "work", (encoder.num_tokens, encoder.dim), "fp32", ENCODED)
        encode_all(partial(encode, encoder, None), images, writer)
        writer.publish(place, images.keys, {"key": {}, "encoder": facts_of(encoder, place)})
        return Features(place, {})

    def arm(self) -> Any:
        """Ours, always with the same weights."""
        from lab.models.arm import Arm
        from lab.models.unified import UnifiedModel
        from lab.registry import build

        torch.manual_seed(0)
        vision = {"name": "clip", "config": self.vision, "layer": -2}
        encoder = build("encoder", vision, SIDE)
        vocabulary = len(self.tokenizer) + 8  # a place for their <image>
        decoder = build("text_decoder", DECODER, vocabulary)
        sizes = (encoder.dim, decoder.dim, encoder.num_tokens)
        connector = build("connector", {"name": "mlp"}, *sizes)
        fusion = build("fusion", {"name": "sequence"}, decoder.dim, len(decoder.layers), connector.num_tokens)
        built: dict[str, Any] = {
            "encoder": (vision, (SIDE,)),
            "connector": ({"name": "mlp"}, sizes),
            "text_decoder": (DECODER, (vocabulary,)),
            "fusion": ({"name": "sequence"}, (decoder.dim, len(decoder.layers), connector.num_tokens)),
        }
        return Arm(UnifiedModel(encoder, connector, decoder, fusion), self.tokenizer, built)

    def row(self, arm: Any, batch: Any) -> dict[str, Tensor]:
        """A sample as the Trainer gets it."""
        image_id = len(self.tokenizer)
        ids = torch.where(batch.read, image_id, batch.ids)[0]
        labels = torch.where(batch.supervised, batch.ids, -100)[0]
        encoder = arm.model.encoder
        row = {"input_ids": ids, "labels": labels}
        if len(batch.pixels_read):
            row["pixel_values"] = ((batch.pixels_read - encoder.mean) / encoder.deviation)[0]
        return row

    def ours(self, layout: str, cached: bool = False) -> tuple[list[float], float]:
        """Losses of the lab, and processor seconds after the first steps."""
        from lab.config import TrainerParams
        from lab.models.cached import AbsentEncoder
        from lab.training.fit import FitSettings, fit
        from lab.training.modules import UnifiedTraining

        arm, watch = self.arm(), Watch()
        features = self.features if cached else None
        if features is not None:
            arm.model.encoder = AbsentEncoder(features, features.folder)
        schedule = {"steps": 10**6, "warmup": 0, "weight_decay": 0.0}
        rates = dict.fromkeys(self.trained, RATE)
        module = UnifiedTraining(arm.model, list(rates), 1.0, learning_rates=rates, **schedule)
        settings = FitSettings(self.steps, BATCH, "32-true", CLIP, 10, self.steps + 1)
        where = TrainerParams(accelerator="cpu", layout=layout)
        collate = arm.collate(("vqa",), features=features)
        with tempfile.TemporaryDirectory(dir=self.folder) as work, contextlib.redirect_stderr(io.StringIO()):
            fit(module, self.samples, collate, settings, Path(work), "step", None, [watch], where)  # type: ignore[arg-type]
        return [float(loss) for loss in watch.losses], watch.seconds

    def seconds(self, layout: str, cached: bool = False) -> float:
        """Processor seconds of the lab in a layout."""
        return self.ours(layout, cached)[1]

    def theirs(self) -> tuple[list[float], float]:
        """The same of transformers."""
        from torch.utils.data import DataLoader
        from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

        class Kept(TrainerCallback):
            """Keeps the time from the end of the warm-up on."""

            start = seconds = 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if state.global_step == WARMUP:
                    self.start = time.process_time()
                self.seconds = time.process_time() - self.start

        losses: list[Tensor] = []

        class InOrder(Trainer):
            """Takes the samples as they come, and keeps its losses."""

            def get_train_dataloader(self) -> Any:
                return DataLoader(self.train_dataset, BATCH, collate_fn=self.data_collator)

            def training_step(self, *args: Any, **named: Any) -> Tensor:
                losses.append(super().training_step(*args, **named))
                return losses[-1]

        model = LlavaForConditionalGeneration.from_pretrained(
            self.folder / "llava", attn_implementation="sdpa"
        )
        model.model.vision_tower.requires_grad_(False)
        if self.trained == PROJECTOR:
            model.requires_grad_(False)
            model.model.multi_modal_projector.requires_grad_(True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, RATE, (0.9, 0.98), weight_decay=0.0)
        kept = Kept()
        settings = TrainingArguments(
            output_dir=str(self.folder / "trainer"),
            per_device_train_batch_size=BATCH,
            max_steps=self.steps,
            max_grad_norm=CLIP,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        with contextlib.redirect_stdout(io.StringIO()):
            InOrder(
                model=model,
                args=settings,
                train_dataset=self.rows,
                data_collator=self.padded,
                optimizers=(optimizer, constant),
                callbacks=[kept],
            ).train()
        return [float(loss) for loss in losses], kept.seconds

    def padded(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Their batch, padded to its longest sample."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad(ids, batch_first=True),
            "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
            "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
            "pixel_values": torch.stack([row["pixel_values"] for row in rows if "pixel_values" in row]),
        }


class Watch(pl.Callback):
    """Keeps losses, and the processor's time from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        if trainer.global_step == WARMUP:
            self.start = time.process_time()
        self.seconds = time.process_time() - self.start


def talks(count: int, rng: np.random.Generator) -> list[Any]:
    """Samples of one to four turns, about an image nine times in ten."""
    from lab.samples.segments import BOS, Sample, answer, image, question, special

    def words(number: float) -> str:
        return " ".join(rng.choice(WORDS, max(1, int(number))))

    samples = []
    for number in range(count):
        parts = [special(BOS)]
        if rng.random() < 0.9 or not number % BATCH:
            parts.append(image(rng.random((3, SIDE, SIDE), np.float32)))
        turns, length = int(rng.integers(1, 5)), rng.lognormal(np.log(40), 0.8)
        for _ in range(turns):
            parts += [question(words(0.3 * length / turns)), answer(words(0.7 * length / turns))]
        samples.append(Sample(str(number), "vqa", tuple(parts)))
    return samples


if __name__ == "__main__":
    main()
