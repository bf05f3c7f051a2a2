"""`params.yaml`: every number of a pipeline, read once, checked in full before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lab.errors import LabError, nearest
from lab.registry import check, words

# of lab/scenes/tasks.py, whose import takes seconds
TASKS = ("caption", "inventory", "vqa", "text_to_image", "edit", "interleaved", "text")
TRAINABLE = ("encoder", "connector", "text_decoder", "text_decoder.lora", "visual_head")
_WORDS = ("encoder", "connector", "text_decoder", "visual_head", "image_decoder")


@dataclass(frozen=True)
class WorldParams:
    """The built-in world (see lab/scenes/world.py); `turns`: questions about one image in training."""

    image_size: int
    grid: int
    max_digits: int
    variants: int
    turns: int


@dataclass(frozen=True)
class DataParams:
    """Scenes composed for each split."""

    train_scenes: int
    validation_scenes: int
    test_scenes: int


@dataclass(frozen=True)
class JudgeParams:
    """Training of the judge."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class FitParams:
    """What every training stage states."""

    steps: int
    batch_size: int
    warmup: int
    weight_decay: float
    clip: float
    precision: str
    log_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class EncoderParams(FitParams):
    """Contrastive pretraining; `losses` weighs caption, region and reconstruction."""

    learning_rate: float
    losses: dict[str, float]


@dataclass(frozen=True)
class TextDecoderParams(FitParams):
    """Language model pretraining on text about scenes."""

    learning_rate: float


@dataclass(frozen=True)
class ImageDecoderParams(FitParams):
    """Image decoder training; `noise` blurs its input tokens."""

    learning_rate: float
    noise: float


@dataclass(frozen=True)
class AlignParams(FitParams):
    """Alignment: roles that train, their rates, its mix."""

    trainable: list[str]
    learning_rate: dict[str, float]
    image_weight: float
    own_feedback: float
    mix: dict[str, float]


@dataclass(frozen=True)
class InstructParams(FitParams):
    """Instruction tuning: roles that train, their rates; its mix is the arm's."""

    trainable: list[str]
    learning_rate: dict[str, float]
    image_weight: float
    own_feedback: float


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
class StagesParams:
    """One section a stage."""

    encoder: EncoderParams
    text_decoder: TextDecoderParams
    image_decoder: ImageDecoderParams
    align: AlignParams
    instruct: InstructParams
    evaluate: EvaluateParams


@dataclass(frozen=True)
class Params:
    """A whole `params.yaml`.

    Attributes:
        name: of the ablation; the MLflow experiment.
        root: of the repository, relative to the file; only dvc.yaml reads it.
        seed: of everything.
        threads: of each stage.
        encoder, text_decoder, visual_head, image_decoder: words.
        connectors: words, one arm each.
        mixes: name -> task -> weight, one arm each.
        settings: role -> word -> settings that differ from the component's defaults.
        world, data, judge, stages: as above.
    """

    name: str
    root: str
    seed: int
    threads: int
    encoder: str
    text_decoder: str
    visual_head: str
    image_decoder: str
    connectors: list[str]
    mixes: dict[str, dict[str, float]]
    settings: dict[str, dict[str, dict[str, Any]]]
    world: WorldParams
    data: DataParams
    judge: JudgeParams
    stages: StagesParams

    def spec(self, role: str, word: str) -> dict[str, Any]:
        """The component's specification: its name and settings."""
        return {"name": word, **self.settings.get(role, {}).get(word, {})}


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML file and applies dotted `key=value` overrides.

    Two words stand for lists of one: `connector=mlp` sets `connectors` to [mlp], `mix=NAME` keeps that mix
    alone. `connector.num_queries=8` goes to the settings of the chosen connector; likewise for other roles.

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
    for override in sorted(overrides, key=_rank):
        _override(tree, override)
    return {str(key): value for key, value in tree.items()}


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Reads, overrides and checks a `params.yaml`.

    Raises:
        LabError: naming every mistake of the file at once.
    """
    return check_params(read_tree(path, overrides), str(path))


def check_params(tree: Mapping[str, Any], where: str = "params.yaml") -> Params:
    """Checks a parameter tree and gives it its types."""
    mistakes: list[str] = []
    params = _structure(Params, tree, "", mistakes)
    if not mistakes:
        mistakes += _words(params) + _recipes(params)
    if mistakes:
        raise LabError(f"{where}: " + "; ".join(mistakes))
    return params


def _words(params: Params) -> list[str]:
    """Mistakes in component words, their settings and mixes."""
    mistakes = []
    chosen = [
        (role, getattr(params, role)) for role in ("encoder", "text_decoder", "visual_head", "image_decoder")
    ]
    chosen += [("connector", word) for word in params.connectors]
    for role, word in chosen:
        try:
            check(role, params.spec(role, word))
        except LabError as error:
            mistakes.append(str(error))
    for role, by_word in params.settings.items():
        if role not in dict(chosen):
            mistakes.append(f"settings: unknown role '{role}'{nearest(role, dict(chosen))}")
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
    mixes = {f"mixes.{name}": mix for name, mix in params.mixes.items()}
    for where, mix in {**mixes, "stages.align.mix": params.stages.align.mix}.items():
        mistakes += [f"{where}: no task '{task}'{nearest(task, TASKS)}" for task in mix if task not in TASKS]
        if min(mix.values(), default=0) < 0 or sum(mix.values()) <= 0:
            mistakes.append(f"{where}: weights must be at least 0, and one of them larger")
    for name in ("align", "instruct"):
        recipe: AlignParams | InstructParams = getattr(params.stages, name)
        for part in recipe.trainable:
            if part not in TRAINABLE:
                mistakes.append(f"stages.{name}.trainable: no part '{part}'{nearest(part, TRAINABLE)}")
            elif part.endswith(".lora") and not params.spec("text_decoder", params.text_decoder).get(
                "lora_rank"
            ):
                mistakes.append(f"stages.{name}.trainable: {part}, but the text decoder has no lora_rank")
            elif part.split(".")[0] not in recipe.learning_rate:
                mistakes.append(
                    f"stages.{name}.learning_rate: none for '{part.split('.')[0]}', which is to train"
                )
    for name, stage in vars(params.stages).items():
        counts = ("steps", "batch_size", "log_every", "checkpoint_every")
        for count in counts:
            if getattr(stage, count, 1) < 1:
                mistakes.append(f"'stages.{name}.{count}' must be at least 1, not {getattr(stage, count)}")
    return mistakes


def _structure(kind: Any, value: Any, where: str, mistakes: list[str]) -> Any:
    """`value` as the type `kind`; mistakes are appended, all of them."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            mistakes.append(f"{where or 'top level'}: expected a mapping, not {value!r}")
            return None
        known = {field.name: field for field in fields(kind)}
        prefix = f"{where}." if where else ""
        mistakes += [
            f"unknown key '{prefix}{key}'{nearest(str(key), known)}" for key in value if key not in known
        ]
        missing = [name for name, field in known.items() if name not in value and field.default is MISSING]
        mistakes += [f"missing key '{prefix}{name}'" for name in missing]
        hints = get_type_hints(kind)
        parts = {
            name: _structure(hints[name], value[name], f"{prefix}{name}", mistakes)
            for name in known
            if name in value
        }
        return None if mistakes else kind(**parts)
    origin = get_origin(kind)
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
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = {list: "a list", dict: "a mapping"}.get(origin or kind, getattr(kind, "__name__", str(kind)))
    mistakes.append(f"'{where}' must be {expected}, not {value!r}")
    return None


def _rank(override: str) -> int:
    """Words before settings: `connector.dim=8 connector=mlp` sets the MLP's; `mix` after what adds mixes."""
    key = override.partition("=")[0]
    return 0 if key in _WORDS else 2 if key == "mix" else 1


def _override(tree: dict[str, Any], override: str) -> None:
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
    head, *rest = key.split(".")
    connectors, mixes = tree.get("connectors"), tree.get("mixes")
    if head in _WORDS and rest:
        word = str((connectors or [""])[0] if head == "connector" else tree.get(head))
        tree.setdefault("settings", {}).setdefault(head, {}).setdefault(word, {})[".".join(rest)] = value
        return
    if key == "connector":
        tree["connectors"] = [value]
        return
    if key == "mix":
        if not isinstance(mixes, dict) or value not in mixes:
            raise LabError(
                f"override '{override}': no mix '{value}'{nearest(str(value), map(str, mixes or ()))}"
            )
        tree["mixes"] = {value: mixes[value]}
        return
    place, passed = tree, ""
    for part in [head, *rest][:-1]:
        place, passed = _step(place, part, passed, override), f"{passed}{part}."
    last = [head, *rest][-1]
    if last not in place and not _open(passed):
        raise LabError(f"override '{override}': unknown key '{key}'{nearest(last, map(str, place))}")
    place[last] = value


def _step(place: Any, part: str, passed: str, override: str) -> dict[str, Any]:
    if part not in place and _open(passed):
        place[part] = {}
    if not isinstance(place.get(part), dict):
        raise LabError(f"override '{override}': unknown key '{passed}{part}'{nearest(part, map(str, place))}")
    return dict.__getitem__(place, part)


def _open(passed: str) -> bool:
    """Whether a mapping takes keys that the file does not have yet."""
    return passed.startswith(("mixes.", "settings.")) or passed.endswith((".mix.", ".learning_rate."))
