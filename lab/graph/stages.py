"""The stages of a pipeline: what each reads and what it makes.

`dvc.yaml` calls them as `lab stage NAME [INSTANCE]` in the folder of a `params.yaml`, and as `lab stage NODE`
in the folder of an `ablation.yaml`. `stages_of` says what each stage of a recipe depends on; a test holds
`dvc.yaml` to it, and an ablation is compiled from it. A part that a stage needs comes from the last stage
before it that trained this part; where none did, it is made afresh. What the stages do: work.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.config import ROLES, Params, tree_of, unadapted
from lab.graph.node import REPOSITORY
from lab.models.caching import FEATURES, pools, trains_encoder
from lab.registry import path
from lab.samples.mix import parse

_MODEL_CODE = ("components/layers", "lab/models", "lab/samples", "lab/scenes", "lab/training")
UNIFIED = ("align", "pretrain", "instruct")  # stages that train the unified model
# stages that several processes can share
TRAINED = ("encoder", "text_decoder", "image_decoder", "represent", *UNIFIED)


@dataclass(frozen=True)
class Stage:
    """What a stage reads.

    Attributes:
        keys: dotted keys of params.yaml; {connector} and {mix} stand for the instance.
        roles: components it builds; the word, the settings and the file of each are read.
        upstream: outputs it takes, {connector} and {mix} likewise.
        code: further files and folders of the repository.
        parts: role -> the stage upstream that trained it, and where in its output the part lies.
        numbers: stages upstream whose metrics it reads.
    """

    keys: tuple[str, ...]
    roles: tuple[str, ...]
    upstream: tuple[str, ...]
    code: tuple[str, ...]
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()


def instance_kinds(stage: Stage) -> list[str]:
    """What tells the instances of a stage apart: "connector", "mix", both, or nothing."""
    texts = (*stage.keys, *stage.upstream, *(f"{{{role}}}" for role in stage.roles))
    return [kind for kind in ("connector", "mix") if any(f"{{{kind}}}" in text for text in texts)]


def parameters_of(params: Params, stage: Stage, given: Mapping[str, str]) -> dict[str, Any]:
    """Dotted key -> value of everything the stage reads from params.yaml."""
    tree = tree_of(params)
    keys = [key.format(**given) for key in stage.keys]
    for role in stage.roles:
        word = given["connector"] if role == "connector" else tree[role]
        keys += [f"settings.{role}.{word}", *([] if role == "connector" else [role])]
    found = {}
    for key in keys:
        value: Any = tree
        for part in key.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        found[key] = value
    return found


def identified_by(params: Params, name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What of a stage's parameters its identity follows from: what it reads, less what it has no use for.

    A language model is pretrained without the adapters that later stages give it, and stages before it is
    joined to images look at its width alone, so arms that differ in adapters share all of these.
    """
    found = parameters_of(params, stages_of(params)[name], given)
    found |= {f"datasets.{one}": asdict(params.datasets[one]) for one in data_sets_of(params, name, given)}
    if name in ("text_decoder", "image_decoder", "represent") and "text_decoder" in found:
        key = f"settings.text_decoder.{params.text_decoder}"
        found[key] = unadapted(found[key])
    return found


def data_sets_of(params: Params, name: str, given: Mapping[str, str]) -> list[str]:
    """The data sets that a stage reads: those of its mix and, where it makes a tokenizer, of all mixes.

    A stage that caches features reads those of the stage that it does that for.
    """
    if not params.datasets:
        return []
    reader = FEATURES.get(name, name)
    mixes: list[Mapping[str, Any]] = []
    joint = [stage for stage in params.recipe if stage in UNIFIED]
    own = {stage: getattr(params.fitted(stage), "mix", None) for stage in joint}
    spells = "text_decoder" if "text_decoder" in params.recipe else next(iter(joint), "")
    named: set[str] = set()
    if name == spells:
        mixes = [*filter(None, own.values()), *params.mixes.values()]
        named = set(params.vocabulary)
    elif reader == "instruct":
        mixes = [params.mixes[given["mix"]]]
    elif mix := own.get(reader):
        mixes = [mix]
    named |= {source.name for mix in mixes for source in parse(mix).sources()}
    return [one for one in params.datasets if one in named]


def code_of(params: Params, stage: Stage, given: Mapping[str, str]) -> list[str]:
    """Files and folders of the repository that shape the stage's numbers."""
    words = {
        role: given["connector"] if role == "connector" else getattr(params, role) for role in stage.roles
    }
    files = [path(role, word) for role, word in words.items()]
    return [
        *stage.code,
        *(str(f.relative_to(REPOSITORY) if f.is_relative_to(REPOSITORY) else f) for f in files),
    ]


def stages_of(params: Params) -> dict[str, Stage]:
    """The stages of a pipeline in the order of its recipe, and the comparison of all arms."""
    stages: dict[str, Stage] = {}
    caches: dict[str, str] = {}  # stage -> the output that has features for it
    # role -> the output that has it after the stages so far, and where in it
    holds: dict[str, tuple[str, str]] = {}
    trained: tuple[str, str] | None = None  # the output of the last stage that trained the encoder
    for name in params.recipe:
        roles = _roles(params, name)
        taken = {role: place for role, place in holds.items() if role in roles and role != name}
        if name in FEATURES:  # shared by arms that differ in what has happened since
            taken = {"encoder": trained} if trained else {}
        fixed = [] if name == "data" else ["data"]
        fixed += ["judge"] if name in ("image_decoder", "evaluate") else []
        fixed += [caches[name]] if name in caches else []
        stage = Stage(
            keys=("seed", "world", *_keys(params, name)),
            roles=roles,
            upstream=tuple(dict.fromkeys([*fixed, *(output for output, _ in taken.values())])),
            code=_code(name),
            parts={role: (output.partition("/")[0], below) for role, (output, below) in taken.items()},
            numbers=("judge", taken["encoder"][0].partition("/")[0]) if name == "evaluate" else (),
        )
        stages[name] = stage
        output = f"{name}/{'-'.join(f'{{{kind}}}' for kind in instance_kinds(stage))}".rstrip("/")
        if name in FEATURES:
            caches[FEATURES[name]] = output
        made = {role: (output, below) for role, below in _makes(params, name)}
        if name in FEATURES and "encoder" not in holds:  # it makes the encoder afresh
            made = {"encoder": (output, "encoder")}
        holds |= made
        if name not in FEATURES and (name not in UNIFIED or trains_encoder(params, name)):
            trained = made.get("encoder", trained)
    stages["compare"] = Stage(("name", "connectors", "mixes"), (), (), ("lab/reports",))
    return stages


def _keys(params: Params, name: str) -> tuple[str, ...]:
    """What a stage reads of params.yaml beside seed, world and its components."""
    if name in ("data", "judge"):
        return (name,)
    if name in FEATURES:
        reader = FEATURES[name]
        own = [f"stages.{reader}.{key}" for key in ("steps", "batch_size")]
        mixed = "mixes.{mix}" if reader == "instruct" else f"stages.{reader}.mix"
        begins = next(stage for stage in params.recipe if stage in UNIFIED) == reader
        return ("stages.features", *own, mixed, *(["visual_head"] if begins else []))
    scored = {"text_decoder": ("stages.evaluate.texts",), "image_decoder": ("stages.evaluate.prompts",)}
    mix = ("mixes.{mix}",) if name == "instruct" else ()
    stored = ("stages.features.dtype",) if f"{name}_features" in params.recipe else ()
    space = ("targets",) if name in ("image_decoder", *UNIFIED, "evaluate") else ()
    return (f"stages.{name}", *scored.get(name, ()), *mix, *space, *stored)


def _code(name: str) -> tuple[str, ...]:
    if name in ("data", "judge"):
        return ("lab/scenes",)
    return (*_MODEL_CODE, "lab/evaluation") if name == "evaluate" else _MODEL_CODE


def _roles(params: Params, name: str) -> tuple[str, ...]:
    """Components that a stage builds or loads."""
    system = tuple(role for role in ROLES if role == "connector" or getattr(params, role) is not None)
    last = ("image_decoder",) if params.image_decoder is not None else ()
    if name in FEATURES:
        return ("encoder", "connector") if pools(params) else ("encoder",)
    if name in UNIFIED:
        through = (
            params.visual_head and params.spec("visual_head", params.visual_head).get("loss") == "decoder"
        )
        return (*system, *last) if through else system
    if name == "evaluate":
        return (*system, *last)
    if name == "image_decoder":
        way_in = ("encoder",) if params.targets == "encoder" else ("encoder", "connector", "text_decoder")
        return (*way_in, "image_decoder")
    if name == "represent":
        return ("encoder", "connector", "text_decoder")
    return (name,) if name in ("encoder", "text_decoder") else ()


def _makes(params: Params, name: str) -> list[tuple[str, str]]:
    """Components that a stage trains or passes on, and where in its output each lies."""
    if name in UNIFIED:
        return [(role, role) for role in _roles(params, name) if role != "image_decoder"]
    if name == "represent":
        return [("connector", "connector")]
    if name == "image_decoder":
        beside = [role for role in params.fitted(name).trainable if role != name]
        return [(name, ""), *((role, role) for role in beside)]
    return [(name, "")] if name in ("encoder", "text_decoder") else []
