"""What is evaluated, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from components.contracts import ImageDecoder
from lab.errors import LabError
from lab.evaluation.few_shot import Choice
from lab.models.arm import Arm
from lab.models.contrastive import ContrastiveModel
from lab.samples.tokenizer import Tokenizer
from lab.scenes.judge import Judge
from lab.scenes.tasks import SceneTasks


class NotAdmittedError(LabError):
    """The arm, or this machine, has not what a protocol needs; others can go on."""


@dataclass(frozen=True)
class Asking:
    """How a protocol is run; every result follows from these and from what the subject is made of.

    Attributes:
        samples: at most this many questions of a kind, captions, prompts or edits.
        seed: of phrasings, objects, shots and noise.
        shots: solved examples before each question.
        choice: how shots are chosen.
        features: the network of the Fréchet distance: "judge", "inception", or a folder of a transformers
            CLIP model.
        clip: the network of the CLIP score: "own" for the contrastive model of the encoder stage, or such a
            folder.
    """

    samples: int = 200
    seed: int = 0
    shots: int = 0
    choice: Choice = "random"
    features: str = "judge"
    clip: str = "own"


@dataclass(frozen=True)
class Subject:
    """A trained arm and all that its evaluation needs.

    Attributes:
        arm: in eval mode.
        held_out: tasks of the test split.
        training: tasks of the training split: shots, and frequencies of objects.
        image_decoder: in eval mode; None for a system that only reads.
        judge: of drawn images; None where there is none.
        contrastive: the encoder stage's contrastive model with its tokenizer; None where there is none.
        batch_size: rows at once; it changes no result.
        drawn: images of prompts by (number, seed): several protocols score the same.
    """

    arm: Arm
    held_out: SceneTasks
    training: SceneTasks
    image_decoder: ImageDecoder | None = None
    judge: Judge | None = None
    contrastive: tuple[ContrastiveModel, Tokenizer] | None = None
    batch_size: int = 50
    drawn: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def seeing(self) -> Judge:
        """The judge.

        Raises:
            NotAdmittedError: there is none.
        """
        if self.judge is None:
            raise NotAdmittedError("there is no judge beside this arm, so nobody reads what it draws")
        return self.judge

    @cached_property
    def drawing(self) -> ImageDecoder:
        """The image decoder.

        Raises:
            NotAdmittedError: the system draws nothing.
        """
        if self.image_decoder is None or self.arm.model.visual_head is None:
            raise NotAdmittedError("this arm answers questions, but draws nothing")
        return self.image_decoder


def folder_of(name: str, known: str) -> Path:
    """A folder that a network is named by.

    Raises:
        LabError: there is no such folder.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise LabError(f"'{name}': expected {known}, or a folder of a transformers CLIP model (config.json)")
    return folder
