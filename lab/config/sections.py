"""The sections of `params.yaml`, one class each: the world, data sets, stages, the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NewType

from lab.samples.mix import MixTree

Switch = NewType("Switch", str)  # a word that may be on or off, which YAML reads as true and false


@dataclass(frozen=True)
class WorldParams:
    """The built-in world (see lab/scenes/world.py).

    `turns`: questions about one image in training. `locations`: location bins along a side, 0 for none.
    """

    image_size: int
    grid: int
    max_digits: int
    variants: int
    turns: int
    locations: int = 0


@dataclass(frozen=True)
class DataParams:
    """Scenes composed for each split."""

    train_scenes: int
    validation_scenes: int
    test_scenes: int


@dataclass(frozen=True)
class DataSetParams:
    """A data set that a mix may name (docs/data.md).

    Attributes:
        path: its folder, looked for in the pipeline's folder and those above it.
        format: one of lab/samples/readers/formats.py.
        policy: what becomes of bad records: error, skip, or quarantine (left out, and written to a folder).
        splits: "own" for what the set itself says; or split -> a share, by a hash of the image; or split -> a
            pattern of file names.
        task: "text_to_image" to draw from captions; else what the format is.
        fit: how images become square: pad, crop, stretch or anyres.
        tiles: at most so many tiles, for anyres.
        limit: most pixels of an image.
    """

    path: str
    format: str
    policy: str = "error"
    splits: Any = "own"
    task: str = ""
    fit: str = "pad"
    tiles: int = 4
    limit: int = 100_000_000


@dataclass(frozen=True)
class JudgeParams:
    """Training of the judge."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class FitParams:
    """What every training stage states.

    `budget`: training ends once this amount is spent, whatever `steps` says; one of BUDGETS -> the amount.
    The schedule then runs over the share spent, and `warmup` is as large a share as it is of `steps`.
    `accumulate`: parts that the samples of a step are divided into, one after the other; the gradient is that
    of all of them at once.
    """

    steps: int
    batch_size: int
    warmup: int
    weight_decay: float
    clip: float
    precision: str
    log_every: int
    checkpoint_every: int
    budget: dict[str, float] = field(default_factory=dict, kw_only=True)
    accumulate: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class EncoderParams(FitParams):
    """Contrastive pretraining; `losses` weighs caption, region and reconstruction."""

    learning_rate: float
    losses: dict[str, float]


@dataclass(frozen=True)
class TextDecoderParams(FitParams):
    """Language model pretraining on text about scenes; `loss_weighting` as in `InstructParams`."""

    learning_rate: float
    loss_weighting: str = field(default="token", kw_only=True)


@dataclass(frozen=True)
class ImageDecoderParams(FitParams):
    """Image decoder training; `noise` blurs its input tokens.

    `trainable` may name the encoder (an autoencoder: vq, vae) or the connector (a tokenizer: VL-GPT) besides.
    """

    learning_rate: float
    noise: float
    trainable: list[str]


@dataclass(frozen=True)
class RepresentParams(FitParams):
    """Representation learning of a Q-Former before it meets the language model (BLIP-2's first stage)."""

    learning_rate: float


@dataclass(frozen=True)
class InstructParams(FitParams):
    """Instruction tuning: parts that train, their rates; its mix is the arm's.

    `loss_weighting`: the text loss is the mean over supervised tokens ("token"), or over samples of the mean
    over a sample's tokens ("sample").
    """

    trainable: list[str]
    learning_rate: dict[str, float]
    image_weight: float
    loss_weighting: str = field(default="token", kw_only=True)


@dataclass(frozen=True)
class AlignParams(InstructParams):
    """Alignment and pretraining: with a mix of their own."""

    mix: MixTree


@dataclass(frozen=True)
class EvaluateParams:
    """Samples scored in each part of the evaluation."""

    questions: int
    captions: int
    prompts: int
    edits: int
    texts: int
    batch_size: int


@dataclass(frozen=True)
class FeaturesParams:
    """What a frozen encoder makes of images, kept for the stages that read it (see docs/features.md).

    `dtype`: fp32, bf16 or fp16. `cache`: on, off, or auto, which measures whether it pays.
    """

    dtype: str = "fp32"
    cache: Switch = Switch("auto")


@dataclass(frozen=True)
class StagesParams:
    """One section a stage, one for all that cache features; stages that the recipe leaves out need none."""

    evaluate: EvaluateParams
    encoder: EncoderParams | None = None
    text_decoder: TextDecoderParams | None = None
    image_decoder: ImageDecoderParams | None = None
    represent: RepresentParams | None = None
    align: AlignParams | None = None
    pretrain: AlignParams | None = None
    instruct: InstructParams | None = None
    features: FeaturesParams | None = None


@dataclass(frozen=True)
class TrainerParams:
    """Where and how fast stages train; no number follows from it beyond rounding and noise.

    `accelerator`: of Lightning's Trainer. `strategy`: auto, ddp (each process has all weights) or fsdp (they
    are split). `devices`: processes a node. `srun` and `torchrun` say themselves how many there are.
    `layout`: how samples of different length share a step, one of LAYOUTS. `checkpointing`: activations of
    the language model's blocks are computed again for the backward pass instead of kept. `compile`: these
    blocks by torch.compile; `fused`: one kernel for the optimizer's update; both on, off, or auto.
    `preflight`: what faults in a stage's samples lead to before its first step, one of PREFLIGHT;
    `preflight_samples`: how many are looked at, 0 for all.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    layout: str = "auto"
    checkpointing: bool = False
    compile: Switch = Switch("auto")
    fused: Switch = Switch("auto")
    preflight: Switch = Switch("error")
    preflight_samples: int = 256
