"""A held-out score during training, for whoever decides early whether a run is worth finishing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch

from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.training.ledger import Ledger


class HeldOutScore(pl.Callback):
    """Reports (step, score) a few times a stage; where the answer is yes, the stage is paused there.

    The score is the same for every arm whatever its mix: minus the mean held-out losses of captions,
    questions and images drawn from prompts.

    Args:
        report: told a step and the score there; says whether to stop and go on another time.
    """

    MIX: ClassVar[dict[str, float]] = {"caption": 1.0, "vqa": 1.0, "text_to_image": 1.0}

    def __init__(self, report: Callable[[int, float], bool]) -> None:
        self.report = report

    def prepare(self, tasks: SceneTasks, steps: int, at: Collection[int] = ()) -> None:
        """Says what is scored and when; called before training.

        Args:
            tasks: held out.
            steps: of the stage.
            at: steps to score at; four in between if none is stated.
        """
        self.held_out = Mixture(tasks.sources(), self.MIX, 96, seed=1)
        self.at = set(at) or {steps * place // 5 for place in range(1, 5)} - {0, steps}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step not in self.at:
            return
        state = torch.get_rng_state()  # looking must not change the run
        modes = {child: child.training for child in module.modules()}
        module.eval()
        with torch.no_grad():
            samples = [self.held_out[position] for position in range(len(self.held_out))]
            batch = trainer.train_dataloader.collate_fn.collate(samples)  # whole, whatever a step's parts are
            losses = module.model(batch.to(module.device))
        for child, training in modes.items():
            child.training = training
        torch.set_rng_state(state)
        if self.report(step, -float(losses.text + losses.image)):
            next(one for one in trainer.callbacks if isinstance(one, Ledger)).pause(trainer)
