"""Pictures of a training while it runs: held-out scenes, rebuilt from their tokens and drawn from prompts.

Nothing that a stage computes follows from them, so no node depends on this file. They need an image decoder,
which the stage itself may not read: where the graph has not trained the arm's yet, there are no pictures yet.
"""

from __future__ import annotations

import json
import logging
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch

from lab.evaluation.generation import draw_all, reconstruct
from lab.graph.node import RECORD
from lab.graph.stages import stages_of
from lab.models.autoencoder import ImageAutoencoder
from lab.models.cached import AbsentEncoder
from lab.models.store import load_component
from lab.scenes.preview import tile
from lab.training.ledger import Ledger

if TYPE_CHECKING:
    from PIL import Image

    from lab.graph.context import Context
    from lab.models.arm import Arm
    from lab.samples.segments import Sample
    from lab.scenes.tasks import SceneTasks
    from lab.tracking import Run

_log = logging.getLogger("lab.graph")
PICTURE = "held-out scenes"
_SCENES, _TIMES = 4, 4  # a look, and looks a stage after the one at its start
_SHARE, _SECONDS = 0.02, 0.5  # of a stage's time that looks may take, and what they may take in any case
_SIDE, _TEXT, _LINE = 128, 68, 16  # px of an image, characters of a line, px of a line


class Looks(pl.Callback):
    """Draws the same held-out prompts at five points of a stage, the first its start; changes nothing in it.

    All looks together take at most 2% of the time that the stage is going to take, or half a second: those
    that would take more are left out.

    Args:
        run: gets the pictures.
        arm: what is trained.
        tasks: held-out ones.
        decoder_at: folder of the image decoder, which may come into being during the training.
    """

    def __init__(self, run: Run, arm: Arm, tasks: SceneTasks, decoder_at: Any) -> None:
        self.run, self.arm, self.tasks, self.decoder_at = run, arm, tasks, decoder_at
        self.spent = 0.0  # seconds
        self._last = 0.0  # seconds of the last look
        self._decoder: Any = None
        self._broken = False

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._ledger = next(one for one in trainer.callbacks if isinstance(one, Ledger))
        self._began, self._began_at = time.perf_counter(), self._ledger.share
        self._point = int(self._ledger.share * _TIMES)
        if self._ledger.done == 0:  # MLflow's slider begins at step 0
            self._show(0, module)
            self._ledger.start_clock()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        share = self._ledger.share
        if self._broken or int(share * _TIMES) <= self._point:
            return
        self._point = int(share * _TIMES)
        elapsed = time.perf_counter() - self._began - self.spent
        whole = elapsed / (share - self._began_at)
        if self.spent + self._last > max(_SHARE * whole, _SECONDS):
            return
        self._show(trainer.global_step, module)

    def _show(self, step: int, module: Any) -> None:
        began = time.perf_counter()
        try:
            self._look(step, module)
        except Exception as error:  # a picture is not worth a training
            self._broken = True
            _log.warning("no more pictures of this training (%s: %s)", type(error).__name__, error)
        self._last = time.perf_counter() - began
        self.spent += self._last
        self.run.metrics({"cost/looking_seconds": self.spent}, step)

    def _look(self, step: int, module: Any) -> None:
        cuda = [module.device] if module.device.type == "cuda" else []
        modes = {child: child.training for child in module.modules()}
        module.eval()
        try:
            with torch.random.fork_rng(devices=cuda), torch.no_grad():  # also building a part draws numbers
                if self._decoder is None and (folder := self.decoder_at()):
                    self._decoder = load_component(folder).to(module.device).eval()
                if self._decoder is not None:
                    self.run.image(PICTURE, self._picture(module.device), step)
        finally:
            for child, training in modes.items():
                child.training = training

    def _picture(self, device: torch.device) -> Image.Image:
        model = self.arm.model
        samples = [self.tasks.sample("text_to_image", row, 0) for row in range(_SCENES)]
        collate = self.arm.collate(tuple(self.tasks.tasks), left=True)
        drawn = draw_all(model, self._decoder, samples, collate, _SCENES, 0)
        connector = model.connector if model.target_space == "connector" else None
        encoder: Any = model.encoder.loaded() if isinstance(model.encoder, AbsentEncoder) else model.encoder
        autoencoder = ImageAutoencoder(encoder.to(device), connector, self._decoder)
        rebuilt = reconstruct(autoencoder, drawn.real.to(device), 0).cpu()
        prompts = [_words(sample) for sample in samples]
        return sheet({"real": drawn.real, "rebuilt": rebuilt, "drawn": drawn.generated}, prompts)


def _words(sample: Sample) -> str:
    """What the user says."""
    words = (sample.segments[1].text or "").split()
    return " ".join(word for word in words if not word.startswith("<"))


def sheet(columns: dict[str, torch.Tensor], prompts: list[str]) -> Image.Image:
    """Images (K, 3, H, W) side by side under their headings, a row a prompt, the prompt below."""
    from PIL import Image, ImageDraw

    lines = [textwrap.wrap(prompt, _TEXT)[:2] for prompt in prompts]
    height = _SIDE + 2 * _LINE + 8
    picture = Image.new("RGB", (len(columns) * (_SIDE + 4), _LINE + height * len(prompts)), "white")
    pen = ImageDraw.Draw(picture)
    for column, (heading, images) in enumerate(columns.items()):
        left = column * (_SIDE + 4)
        pen.text((left + 2, 1), heading, "black")
        for row, image in enumerate(images):
            pixels = np.asarray(image.float())[None]
            enlarged = tile(pixels, 1).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, _LINE + row * height))
    for row, wrapped in enumerate(lines):
        for number, line in enumerate(wrapped):
            pen.text((2, _LINE + row * height + _SIDE + 2 + number * _LINE), line, "black")
    return picture


def looks(context: Context, arm: Arm) -> tuple[pl.Callback, ...]:
    """The callback of a stage that has somebody to show pictures to, and something to draw them with."""
    if context.tracked is None or not context.tracked.recorded or arm.model.visual_head is None:
        return ()
    return (Looks(context.tracked, arm, context.tasks("validation"), lambda: decoder_of(context)),)


def decoder_of(context: Context) -> Path | None:
    """The image decoder that the arm of a stage is evaluated with, None where it is not trained yet."""
    own = _made_from(context.node.content["upstream"], context.folder / "output")
    for place in _evaluated_with(context):
        try:
            made_from = json.loads((place / RECORD).read_text())["upstream"]
        except (OSError, ValueError, KeyError):
            continue
        # of the same data and encoder, and not of those that an earlier pipeline left here
        if all(own.get(name, identity) == identity for name, identity in made_from.items()):
            return place
    return None


def _made_from(upstream: Mapping[str, str], output: Path) -> dict[str, str]:
    """Name -> identity of all nodes that lead to one, not only of those that it reads itself."""
    found = dict(upstream)
    for name in upstream:
        with suppress(OSError, ValueError, KeyError):
            found = _made_from(json.loads((output / name / RECORD).read_text())["upstream"], output) | found
    return found


def _evaluated_with(context: Context) -> list[Path]:
    """Where the image decoder lies with which a stage's arm is evaluated."""
    import yaml

    output = context.folder / "output"
    if (context.folder / "ablation.yaml").exists():
        found = []
        for file in sorted(context.folder.glob("nodes/*/evaluate.yaml")):
            text = file.read_text(encoding="utf-8")
            if context.node.instance not in text:  # of another arm: hundreds need not be parsed
                continue
            tree = yaml.safe_load(text)
            if (
                tree["inputs"].get(context.stage) == context.node.instance
                and "image_decoder" in tree["parts"]
            ):
                found.append(output / tree["parts"]["image_decoder"])
        return found
    evaluate = stages_of(context.params).get("evaluate")
    if evaluate is None or "image_decoder" not in evaluate.parts:
        return []
    word, below = evaluate.parts["image_decoder"]
    text = next(text for text in evaluate.upstream if text.partition("/")[0] == word)
    return [output / text.format(connector=context.connector, mix=context.mix) / below]
