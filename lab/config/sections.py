"""`params.yaml`: every number of a pipeline, read once, checked in full before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NewType, get_args, get_origin, get_type_hints

from lab.errors import LabError, nearest
from lab.models.caching import FEATURES, mistakes_of_caches
from lab.models.compatibility import mistakes_of
from lab.registry import check, describe, words
from lab.samples.mix import MixTree, parse, stated

# of lab/scenes/tasks.py, whose import takes seconds
TASKS = (
    "caption",
    "inventory",
    "vqa",
    "text_to_image",
    "edit",
    "interleaved",
    "text",
    "documents",
    "listing",
    "draw",
    "by_example",
)
LOCATION_TASKS = ("ground", "refer", "grounded_caption")  # of a world with location words alone
DRAWING = ("text_to_image", "edit", "interleaved", "draw")  # tasks that need a visual head
ROLES = ("encoder", "connector", "text_decoder", "fusion", "visual_head")  # of the unified model
WORDS = (*ROLES, "image_decoder")
RECIPE = ("data", "judge", "encoder", "text_decoder", "image_decoder", "align", "instruct", "evaluate")
OPTIONAL = ("represent", "pretrain", *FEATURES)  # stages that the default recipe does without
BUDGETS = ("tokens", "flops", "seconds")  # units at which the trainer stops, beside steps
STRATEGIES = ("auto", "ddp", "fsdp")
POLICIES = ("error", "skip", "quarantine")
FITS = ("pad", "crop", "stretch", "anyres")
SPLITS = ("train", "validation", "test")
LAYOUTS = ("auto", "padded", "buckets", "packed")
SWITCH = ("auto", "on", "off")
PREFLIGHT = ("error", "warn", "off")  # what faults in samples lead to
WEIGHTINGS = ("token", "sample")
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


@dataclass(frozen=True)
class Params:
    """A whole `params.yaml`.

    Attributes:
        name: of the ablation; the MLflow experiment.
        root: of the repository, relative to the file; only dvc.yaml reads it.
        seed: of everything.
        threads: of each stage.
        encoder, text_decoder, fusion, visual_head, image_decoder: words; a system that only reads has neither
            of the last two.
        connectors: words, one arm each.
        mixes: name -> mix (see lab/samples/mix.py), one arm each.
        settings: role -> word -> settings that differ from the component's defaults.
        world, data, judge, stages: as above.
        targets: what a drawn image is made of: the "encoder"'s tokens, or the "connector"'s.
        recipe: the stages, in order.
        system: name of the published system that this is, "" for none.
        trainer: where it runs; not part of what a stage's numbers follow from.
        datasets: those that mixes may name beside tasks.
        vocabulary: data sets whose words a language model that is made from scratch here knows, beside those
            that its mixes name.
    """

    name: str
    root: str
    seed: int
    threads: int
    encoder: str
    text_decoder: str
    visual_head: str | None
    image_decoder: str | None
    connectors: list[str]
    mixes: dict[str, MixTree]
    settings: dict[str, dict[str, dict[str, Any]]]
    world: WorldParams
    data: DataParams
    judge: JudgeParams
    stages: StagesParams
    fusion: str = "sequence"
    targets: str = "encoder"
    recipe: list[str] = field(default_factory=lambda: list(RECIPE))
    system: str = ""
    trainer: TrainerParams = field(default_factory=TrainerParams)
    datasets: dict[str, DataSetParams] = field(default_factory=dict)
    vocabulary: list[str] = field(default_factory=list)

    def words(self) -> dict[str, str]:
        """Role -> word of the parts that all arms share, those that there are."""
        roles = ("encoder", "text_decoder", "fusion", "visual_head", "image_decoder")
        return {role: word for role in roles if (word := getattr(self, role)) is not None}

    def fitted(self, stage: str) -> Any:
        """The section of a stage that trains or caches features.

        Raises:
            LabError: the recipe has the stage, but `stages` has no section for it.
        """
        name = "features" if stage in FEATURES else stage
        section = getattr(self.stages, name)
        if section is None:
            raise LabError(f"stages.{name}: missing, though the recipe has this stage")
        return section

    def setting(self, role: str, word: str, name: str) -> Any:
        """A setting of a component, its default where none is stated, None where it has no such setting."""
        defaults = {parameter.name: parameter.default for parameter in describe(role, word).parameters}
        return self.spec(role, word).get(name, defaults.get(name))

    def spec(self, role: str, word: str) -> dict[str, Any]:
        """The component's specification: its name and settings."""
        return {"name": word, **self.settings.get(role, {}).get(word, {})}


# settings of a text decoder that its pretraining knows not of
_ADAPTATION = ("lora_", "adapter_", "quantise")


def unadapted(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification of a text decoder without LoRA, adapters and quantisation."""
    return {key: value for key, value in spec.items() if not key.startswith(_ADAPTATION)}


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML file and applies dotted `key=value` overrides.

    Two words stand for lists of one: `connector=mlp` sets `connectors` to [mlp], `mix=NAME` keeps that mix
    alone. `connector.num_queries=8` goes to the settings of the chosen connector, likewise for other roles;
    `mix.vqa=2` is a weight in the chosen mix.

    Raises:
        LabError: a missing file, broken YAML, an override without `=` or of an unknown key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.exists():
        raise LabError(f"{path}: no such file; run the command in a folder that holds a params.yaml")
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise LabError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise LabError(f"{path}: expected a mapping of parameters")
    return overridden({str(key): value for key, value in tree.items()}, overrides)


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with dotted `key=value` overrides applied to it, in place, as `read_tree` says.

    Raises:
        LabError: an override without `=` or of an unknown key.
    """
    for override in sorted(overrides, key=_rank):
        apply_override(tree, override)
    return tree


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Reads, overrides and checks a `params.yaml`.

    Raises:
        LabError: naming every mistake of the file at once.
    """
    return check_params(read_tree(path, overrides), str(path))


def check_params(tree: Mapping[str, Any], where: str = "params.yaml") -> Params:
    """Checks a parameter tree and gives it its types.

    Raises:
        LabError: naming every mistake at once.
    """
    params, mistakes = examine(tree)
    if params is None:
        raise LabError(f"{where}: " + "; ".join(mistakes))
    return params


def examine(tree: Mapping[str, Any]) -> tuple[Params | None, list[str]]:
    """A parameter tree with its types, None if there are mistakes, and these."""
    mistakes: list[str] = []
    params: Params = _structure(Params, tree, "", mistakes)
    if not mistakes:
        unknown, mistakes = _words(params), _recipes(params)
        mistakes += [] if unknown or mistakes else mistakes_of_caches(params)
        apart = [] if unknown else mistakes_of(params, recipe=not mistakes)
        mistakes = unknown + mistakes + apart
    return None if mistakes else params, mistakes


# settings of a stage that params.yaml need not state, and what they are then
_UNSAID: dict[str, Any] = {"budget": {}, "accumulate": 1, "loss_weighting": "token"}


def tree_of(params: Params) -> dict[str, Any]:
    """Parameters as the tree that they were read from, less where to train, from which no number follows.

    A budget is there where a stage has one, and so is what else a stage may leave at its default.
    """
    tree = asdict(params)
    del tree["trainer"]
    for key in ("datasets", "vocabulary"):
        if not tree[key]:
            del tree[key]
    for section in (tree["stages"] or {}).values():  # none where a node of an ablation reads none
        for name, usual in _UNSAID.items():
            if section and section.get(name) == usual:
                del section[name]
    return tree


def node_params(tree: Mapping[str, Any], name: str) -> Params:
    """Parameters of one node of an ablation: those that its stage reads.

    All others are None, so that a stage that reads more than it says fails instead of going stale unnoticed.
    """
    mistakes: list[str] = []
    unread = {item.name: None for item in fields(Params)}
    known = {"threads": 1, "system": "", **tree, "name": name}
    hints = _hints(Params)
    read = {key: _structure(hints[key], value, key, mistakes, partial=True) for key, value in known.items()}
    if mistakes:
        raise LabError(f"{name}: " + "; ".join(mistakes))
    return Params(**{**unread, **read})


_hints = cache(get_type_hints)


def _words(params: Params) -> list[str]:
    """Mistakes in component words, their settings and mixes."""
    mistakes = []
    chosen = list(params.words().items())
    chosen += [("connector", word) for word in params.connectors]
    for role, word in chosen:
        try:
            check(role, params.spec(role, word))
        except LabError as error:
            mistakes.append(str(error))
    for role, by_word in params.settings.items():
        if role not in WORDS:
            mistakes.append(f"settings: unknown role '{role}'{nearest(role, WORDS)}")
            continue
        mistakes += [
            f"settings.{role}: no {role} '{word}'{nearest(word, words(role))}"
            for word in by_word
            if word not in words(role)
        ]
    if not params.connectors or not params.mixes:
        mistakes.append("connectors and mixes: each needs at least one entry")
    mistakes += [f"mixes: '{name}' may not contain '-'" for name in params.mixes if "-" in name]
    return mistakes


def _recipes(params: Params) -> list[str]:
    """Mistakes that would show only when a stage trains, after those before it have taken their time."""
    mistakes = []
    stages = (*RECIPE, *OPTIONAL)
    mistakes += [
        f"recipe: no stage '{name}'{nearest(name, stages)}" for name in params.recipe if name not in stages
    ]
    trainer = params.trainer
    words_of_trainer = {
        "strategy": STRATEGIES,
        "layout": LAYOUTS,
        "compile": SWITCH,
        "fused": SWITCH,
        "preflight": PREFLIGHT,
    }
    for name, known in words_of_trainer.items():
        if (word := getattr(trainer, name)) not in known:
            mistakes.append(f"trainer.{name}: no {name} '{word}'{nearest(word, known)}")
    mistakes += [
        f"'trainer.{name}' must be at least {least}, not {getattr(trainer, name)}"
        for name, least in (("devices", 1), ("num_nodes", 1), ("preflight_samples", 0))
        if getattr(trainer, name) < least
    ]
    if params.targets not in ("encoder", "connector"):
        mistakes.append(f"targets: expected encoder or connector, not {params.targets!r}")
    mixes: dict[str, tuple[MixTree, list[str]]] = {  # with the stages that train on it
        f"mixes.{name}": (mix, ["instruct"]) for name, mix in params.mixes.items()
    }
    for name in ("align", "pretrain", "instruct"):
        recipe: InstructParams | None = getattr(params.stages, name)
        if recipe is None or name not in params.recipe:
            continue
        if isinstance(recipe, AlignParams):
            mixes[f"stages.{name}.mix"] = recipe.mix, [name]
        for part in recipe.trainable:
            mistakes += _trainable(params, name, part, recipe)
    for where, (mix, users) in mixes.items():
        mistakes += _mix(params, where, mix, users)
    mistakes += _data_sets(params)
    for name, stage in vars(params.stages).items():
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "accumulate")
        for count in counts:
            if getattr(stage, count, 1) < 1:
                mistakes.append(f"'stages.{name}.{count}' must be at least 1, not {getattr(stage, count)}")
        weighting = getattr(stage, "loss_weighting", "token")
        if weighting not in WEIGHTINGS:
            wrong = f"no weighting '{weighting}'{nearest(weighting, WEIGHTINGS)}"
            mistakes.append(f"stages.{name}.loss_weighting: {wrong}")
        budget = getattr(stage, "budget", {})
        mistakes += [
            f"stages.{name}.budget: no unit '{unit}'{nearest(unit, BUDGETS)}"
            if unit not in BUDGETS
            else f"'stages.{name}.budget.{unit}' must be more than 0, not {amount}"
            for unit, amount in budget.items()
            if unit not in BUDGETS or not amount > 0
        ]
        if len(budget) > 1:
            mistakes.append(f"stages.{name}.budget: one unit, not {' and '.join(budget)}")
        caches = name == "features" and not FEATURES.keys().isdisjoint(params.recipe)
        if stage is None and (caches or name in params.recipe):
            mistakes.append(f"missing key 'stages.{name}'")
    return mistakes


def _mix(params: Params, where: str, tree: MixTree, stages: Sequence[str]) -> list[str]:
    """Mistakes in what a mix draws from, and in how long it lasts."""
    mistakes, mix = [], parse(tree, where)
    drawn = mix.ever()
    for source in mix.sources():
        name = source.name
        if name in LOCATION_TASKS and params.world.locations <= 0:
            mistakes.append(f"{where}: task '{name}' needs world.locations > 0")
        elif name not in (known := (*TASKS, *LOCATION_TASKS, *params.datasets)):
            mistakes.append(f"{where}: no task '{name}'{nearest(name, known)}")
        if params.visual_head is None and _draws(params, name) and name in drawn:
            mistakes.append(f"{where}: '{name}' draws images, but there is no visual_head")
    for stage in stages:
        section = getattr(params.stages, stage)
        if section is None or stage not in params.recipe:
            continue
        if mix.planned and section.budget:
            mistakes.append(
                f"stages.{stage}.budget: {where} has weights that change or epochs, which are laid out over "
                "the steps of a stage; state steps alone"
            )
    return mistakes


def _draws(params: Params, task: str) -> bool:
    """Whether samples of a task, or of a data set as far as its entry says, have images to draw."""
    entry = params.datasets.get(task)
    return task in DRAWING or (
        entry is not None and (entry.task == "text_to_image" or entry.format == "edits")
    )


def names_data_set(name: str) -> bool:
    """Whether a word can name a data set: in a mix, and as a folder."""
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)) and name not in (*TASKS, *LOCATION_TASKS, "of")


def _data_sets(params: Params) -> list[str]:
    """Mistakes in the entries of data sets."""
    mistakes = [
        f"vocabulary: no data set '{name}'{nearest(name, params.datasets)}"
        for name in params.vocabulary
        if name not in params.datasets
    ]
    for name, entry in params.datasets.items():
        if not names_data_set(name):
            mistakes.append(f"datasets.{name}: expected a name of a-z, 0-9 and _ that is no task")
        mistakes += mistakes_in_data_set(f"datasets.{name}", entry)
    return mistakes


def mistakes_in_data_set(where: str, entry: DataSetParams) -> list[str]:
    """Mistakes in the entry of one data set; `where` it stands."""
    from lab.samples.readers.formats import FORMATS  # whose import takes a while

    choices = {"policy": POLICIES, "format": FORMATS, "fit": FITS, "task": ("", "text_to_image")}
    mistakes = [f"{where}.splits: {mistake}" for mistake in _splits(entry.splits)]
    for key, known in choices.items():
        if (word := getattr(entry, key)) not in known:
            mistakes.append(f"{where}.{key}: no '{word}'{nearest(word, filter(None, known))}")
    mistakes += [
        f"'{where}.{key}' must be from 1 to {most:,}, not {value}"
        for key, most in (("tiles", 100), ("limit", 178_000_000))
        if not 1 <= (value := getattr(entry, key)) <= most
    ]
    return mistakes


def _splits(splits: Any) -> list[str]:
    if splits == "own":
        return []
    if not isinstance(splits, Mapping) or not splits:
        return [f"expected own, or a share or a file of each split, not {splits!r}"]
    mistakes = [f"no split '{name}'{nearest(str(name), SPLITS)}" for name in splits if name not in SPLITS]
    values = list(splits.values())
    if all(isinstance(value, str) for value in values):
        return mistakes
    if not all(isinstance(value, (int, float)) and 0 <= value < 1 for value in values):
        return [*mistakes, f"expected shares from 0 to 1, or names of files, not {dict(splits)!r}"]
    if "train" in splits or not 0 < sum(values) < 1:
        mistakes.append("expected shares of validation and test; what they leave is for training")
    return mistakes


def _trainable(params: Params, stage: str, part: str, recipe: InstructParams) -> list[str]:
    """Mistakes in one entry of a stage's `trainable`: a role, or a pattern of parameter names in one."""
    role = part.partition(".")[0]
    where = f"stages.{stage}.trainable"
    if role not in ROLES:
        return [f"{where}: no part '{part}'{nearest(part, ROLES)}"]
    if role == "visual_head" and params.visual_head is None:
        return [f"{where}: {part}, but there is no visual_head"]
    settings = params.spec("text_decoder", params.text_decoder)
    if part == "text_decoder.lora" and not settings.get("lora_rank"):
        return [f"{where}: {part}, but the text decoder has no lora_rank"]
    if role not in recipe.learning_rate:
        return [f"stages.{stage}.learning_rate: none for '{role}', which is to train"]
    return []


def _structure(kind: Any, value: Any, where: str, mistakes: list[str], partial: bool = False) -> Any:
    """`value` as the type `kind`; mistakes are appended, all of them. What a partial one lacks is None."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            mistakes.append(f"{where or 'top level'}: expected a mapping, not {value!r}")
            return None
        known = {item.name: item for item in fields(kind)}
        prefix = f"{where}." if where else ""
        mistakes += [
            f"unknown key '{prefix}{key}'{nearest(str(key), known)}" for key in value if key not in known
        ]
        missing = [
            name
            for name, item in known.items()
            if name not in value and item.default is MISSING and item.default_factory is MISSING
        ]
        mistakes += [] if partial else [f"missing key '{prefix}{name}'" for name in missing]
        hints = _hints(kind)
        parts = {
            name: _structure(hints[name], value[name], f"{prefix}{name}", mistakes, partial)
            for name in known
            if name in value
        }
        return None if mistakes else kind(**dict.fromkeys(missing), **parts)
    origin = get_origin(kind)
    if origin is UnionType:  # of one type and None
        inner = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None else _structure(inner, value, where, mistakes, partial)
    if origin is list and isinstance(value, list):
        return [
            _structure(get_args(kind)[0], item, f"{where}[{index}]", mistakes)
            for index, item in enumerate(value)
        ]
    if origin is dict and isinstance(value, Mapping):
        item_kind = get_args(kind)[1]
        return {
            str(key): _structure(item_kind, item, f"{where}.{key}", mistakes) for key, item in value.items()
        }
    if kind is Any:
        return value
    if kind is MixTree:
        return stated(value, where, mistakes)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is Switch:
        kind, value = str, ("on" if value else "off") if isinstance(value, bool) else value
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = {list: "a list", dict: "a mapping"}.get(origin or kind, getattr(kind, "__name__", str(kind)))
    mistakes.append(f"'{where}' must be {expected}, not {value!r}")
    return None


def _rank(override: str) -> int:
    """Words before settings: `connector.dim=8 connector=mlp` sets the MLP's; `mix` after what adds mixes.

    Weights of the mix come last, when it is known which it is.
    """
    key = override.partition("=")[0]
    return 0 if key in WORDS else 3 if key.startswith("mix.") else 2 if key == "mix" else 1


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Applies one dotted `key=value` to a parameter tree.

    Raises:
        LabError: no `=`, or an unknown key.
    """
    from yaml import YAMLError, safe_load

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise LabError(f"override '{override}': expected key=value")
    try:
        value = safe_load(text)
    except YAMLError as error:
        raise LabError(f"override '{override}': {' '.join(str(error).split())}") from error
    if isinstance(value, str):
        with suppress(ValueError):  # YAML reads 1e-3 as text
            value = float(value) if any(letter.isdigit() for letter in value) else value
    assign(tree, key, value, f"override '{override}'")


def assign(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Gives one dotted key of a parameter tree a value.

    As in `read_tree`: `connector` and `mix` stand for lists of one, `connector.num_queries` for a setting of
    the chosen connector; likewise for other roles, and `mix.vqa` for a weight in the first mix.

    Args:
        tree: changed in place.
        key, value: what to set.
        where: begins messages.

    Raises:
        LabError: an unknown key, or a setting of a part that there is none of.
    """
    head, *rest = key.split(".")
    connectors, mixes = tree.get("connectors"), tree.get("mixes")
    if head in WORDS and rest:
        word = (connectors or [""])[0] if head == "connector" else tree.get(head)
        if not isinstance(word, str):
            raise LabError(f"{where}: {key}, but there is no {head}")
        tree.setdefault("settings", {}).setdefault(head, {}).setdefault(word, {})[".".join(rest)] = value
        return
    if key == "connector":
        tree["connectors"] = [value]
        return
    if key == "mix":
        if not isinstance(mixes, dict) or not isinstance(value, str) or value not in mixes:
            raise LabError(f"{where}: no mix '{value}'{nearest(str(value), map(str, mixes or ()))}")
        tree["mixes"] = {value: mixes[value]}
        return
    if head == "mix" and isinstance(mixes, dict) and mixes:
        head, rest = "mixes", [next(iter(mixes)), *rest]
    if head == "vocabulary" or (head in ("trainer", "datasets") and rest):
        tree.setdefault(head, {})
    place, passed = tree, ""
    for part in [head, *rest][:-1]:
        place, passed = _step(place, part, passed, where), f"{passed}{part}."
    last = [head, *rest][-1]
    if last not in place and not _open(passed):
        raise LabError(f"{where}: unknown key '{key}'{nearest(last, map(str, place))}")
    place[last] = value


def _step(place: Any, part: str, passed: str, where: str) -> dict[str, Any]:
    if part not in place and _open(passed):
        place[part] = {}
    if not isinstance(place.get(part), dict):
        raise LabError(f"{where}: unknown key '{passed}{part}'{nearest(part, map(str, place))}")
    return dict.__getitem__(place, part)


def _open(passed: str) -> bool:
    """Whether a mapping takes keys that the file does not have yet."""
    whole = ("mixes.", "settings.", "trainer.", "datasets.")
    return passed.startswith(whole) or passed.endswith((".mix.", ".learning_rate."))
