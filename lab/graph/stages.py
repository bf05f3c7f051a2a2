"""The stages of a pipeline: what each reads, and what it does.

`dvc.yaml` calls them as `lab stage NAME [INSTANCE]` in the folder of a `params.yaml`. `stages_of` says what
each stage of a recipe depends on; a test holds `dvc.yaml` to it. A part that a stage needs comes from the
last stage before it that trained this part; where none did, it is made afresh.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lab.config import ROLES, FitParams, Params, load_params
from lab.errors import LabError, nearest
from lab.graph.node import REPOSITORY, Node, clear, identify, identity_of, publish, write_metrics
from lab.registry import path

if TYPE_CHECKING:
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import Split, World
    from lab.tracking import Run

SHARED = "shared"  # the MLflow parent of stages that all arms share
_MODEL_CODE = ("components/layers", "lab/models", "lab/samples", "lab/scenes", "lab/training")
UNIFIED = ("align", "pretrain", "instruct")  # stages that train the unified model


@dataclass(frozen=True)
class Stage:
    """What a stage reads.

    Attributes:
        keys: dotted keys of params.yaml; {connector} and {mix} stand for the instance.
        roles: components it builds; the word, the settings and the file of each are read.
        upstream: outputs it takes, {connector} and {mix} likewise.
        code: further files and folders of the repository.
        run: does the work.
        parts: role -> output that holds the trained part, below it; {connector} and {mix} likewise.
    """

    keys: tuple[str, ...]
    roles: tuple[str, ...]
    upstream: tuple[str, ...]
    code: tuple[str, ...]
    run: Callable[[Context], dict[str, Any]]
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Context:
    """A stage in execution.

    Attributes:
        folder: of params.yaml; everything is read and written below it.
        params: the pipeline's parameters.
        stage: its name.
        connector, mix: the instance, "" where the stage has none.
        node: its identity and folders.
        out: folder to write to; it becomes the output when the stage ends well.
        tracked: the MLflow run.
        callbacks: of Lightning, for a stage that trains, beside its own.
    """

    folder: Path
    params: Params
    stage: str
    connector: str
    mix: str
    node: Node
    out: Path = field(default_factory=Path)
    tracked: Run | None = None
    callbacks: tuple[Any, ...] = ()

    @property
    def arm(self) -> str:
        return self.params.system or f"{self.connector}-{self.mix}"

    @property
    def definition(self) -> Stage:
        """What the stage reads."""
        return stages_of(self.params)[self.stage]

    def trained(self) -> dict[str, Path]:
        """Role -> folder of the part that an earlier stage trained."""
        given = {"connector": self.connector, "mix": self.mix}
        return {role: self.output(text.format(**given)) for role, text in self.definition.parts.items()}

    @property
    def metrics_name(self) -> str:
        """The metrics file, relative to `metrics/`."""
        if self.node.instance:
            return f"{self.stage}/{self.node.instance}.json"
        return f"{_METRICS_NAMES.get(self.stage, self.stage)}.json"

    def output(self, name: str) -> Path:
        """The output folder of another stage."""
        return self.folder / "output" / name

    @cached_property
    def world(self) -> World:
        return world_of(self.params)

    def tasks(self, split: Split) -> SceneTasks:
        """The tasks of one split of the data."""
        from lab.scenes.tasks import SceneTasks
        from lab.scenes.world import read_split

        return SceneTasks(read_split(self.output("data"), self.world, split), self.params.world.turns)

    def image_decoder(self) -> Any:
        """The image decoder that an earlier stage trained, None where this stage needs none."""
        from lab.models.store import load_component

        folder = self.trained().get("image_decoder")
        return None if folder is None else load_component(folder)

    def fit(self, module: Any, dataset: Any, collate: Any, settings: FitParams) -> float:
        """Trains; returns seconds."""
        from lab.training.fit import FitSettings, fit

        start = time.perf_counter()
        names = FitSettings.__dataclass_fields__
        fit(
            module,
            dataset,
            collate,
            FitSettings(**{name: getattr(settings, name) for name in names}),
            self.node.work,
            self.node.label,
            self.tracked,
            self.callbacks,
        )
        return time.perf_counter() - start


def world_of(params: Params) -> World:
    """The world that the parameters describe."""
    from lab.scenes.world import World

    try:
        return World(
            params.world.image_size,
            params.world.grid,
            params.world.max_digits,
            params.world.variants,
            params.world.locations,
        )
    except ValueError as error:
        raise LabError(str(error)) from error


def run_stage(name: str, *instance: str) -> dict[str, Any]:
    """Runs one stage in the pipeline of the current folder and publishes its output and metrics.

    Args:
        name: of the stage.
        instance: connector word and mix name, as far as the stage has them.

    Returns:
        The stage's metrics.

    Raises:
        LabError: whatever the person can mend.
    """
    folder = Path.cwd()
    params = load_params(folder / "params.yaml")
    context = prepare(folder, params, name, *instance)
    return execute(context)


def prepare(folder: Path, params: Params, name: str, *instance: str, work: Path | None = None) -> Context:
    """Checks the stage's name and instance and computes its identity.

    Args:
        folder: of the pipeline.
        params: of the pipeline.
        name, instance: which stage.
        work: where to keep resumable state, if not in `.lab/work` of the folder.

    Raises:
        LabError: an unknown name, or an instance that params.yaml does not have.
    """
    stages = stages_of(params)
    if name not in stages:
        raise LabError(f"no stage '{name}'{nearest(name, stages)}")
    wanted = instance_kinds(stages[name])
    if len(instance) != len(wanted):
        raise LabError(
            f"stage {name}: takes {' and '.join(wanted) or 'no instance'}, got {list(instance) or 'nothing'}"
        )
    given = dict(zip(wanted, instance, strict=True))
    for kind, word in given.items():
        known = params.connectors if kind == "connector" else list(params.mixes)
        if word not in known:
            raise LabError(f"stage {name}: no {kind} '{word}' in params.yaml{nearest(word, known)}")
    label = "-".join(instance)
    target = folder / "output" / name / label
    identity = identity_for(folder, params, name, given)
    node = Node(name, label, identity, target, (work or folder / ".lab" / "work") / identity)
    return Context(folder, params, name, given.get("connector", ""), given.get("mix", ""), node)


def instance_kinds(stage: Stage) -> list[str]:
    """What tells the instances of a stage apart: "connector", "mix", both, or nothing."""
    texts = (*stage.keys, *stage.upstream, *(f"{{{role}}}" for role in stage.roles))
    return [kind for kind in ("connector", "mix") if any(f"{{{kind}}}" in text for text in texts)]


def identity_for(folder: Path, params: Params, name: str, given: Mapping[str, str]) -> str:
    """Identity of a stage's node, from what it reads now."""
    stage = stages_of(params)[name]
    upstream = {
        text.format(**given): identity_of(folder / "output" / text.format(**given)) for text in stage.upstream
    }
    return identify(
        name,
        "-".join(given.values()),
        identified_by(params, name, given),
        code_of(params, stage, given),
        upstream,
    )


def parameters_of(params: Params, stage: Stage, given: Mapping[str, str]) -> dict[str, Any]:
    """Dotted key -> value of everything the stage reads from params.yaml."""
    tree = asdict(params)
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
    from lab.models.arm import unadapted

    found = parameters_of(params, stages_of(params)[name], given)
    if name in ("text_decoder", "image_decoder", "represent") and "text_decoder" in found:
        key = f"settings.text_decoder.{params.text_decoder}"
        found[key] = unadapted(found[key])
    return found


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


def execute(context: Context) -> dict[str, Any]:
    """Runs a prepared stage: tracks it, publishes output and metrics, removes resumable state."""
    import torch

    params, node = context.params, context.node
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", params.threads)))
    torch.manual_seed(params.seed)
    with tracked_run(context) as run:
        context.tracked = run
        with publish(node) as out:
            context.out = out
            metrics = context.definition.run(context)
        numbers = metrics.get("metrics", metrics)
        run.metrics({name: value for name, value in numbers.items() if isinstance(value, (int, float))})
    if metrics:
        write_metrics(context.folder / "metrics" / context.metrics_name, metrics)
    clear(node.work)
    return metrics


def tracked_run(context: Context) -> AbstractContextManager[Run]:
    """The MLflow run of a stage, under its arm."""
    from lab.tracking import start_run

    params, stage = context.params, context.definition
    given = {"connector": context.connector, "mix": context.mix}
    tags = {**params.words(), **({"system": params.system} if params.system else {})}
    tags |= {"seed": str(params.seed), **{kind: word for kind, word in given.items() if word}}
    return start_run(
        experiment=params.name,
        arm=context.arm if context.mix or (params.system and context.node.instance) else SHARED,
        stage=context.stage,
        name=" ".join(filter(None, [context.stage, *([params.system] if params.system else given.values())])),
        identity=context.node.identity,
        params=_flat(parameters_of(params, stage, given)),
        tags=tags,
        dataset=("scenes", data_hash(context)),
    )


def data_hash(context: Context) -> str:
    """DVC's hash of the data that a stage reads; the node's identity where DVC has not recorded it yet."""
    import yaml

    data = context.output("data")
    if not data.exists():
        return context.node.identity
    lock = data.resolve().parents[1] / "dvc.lock"  # an arm of `lab train` links to the data of the pipeline
    if lock.exists():
        stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
        for out in stages.get("data", {}).get("outs", ()):
            return str(out["md5"])
    return identity_of(data)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# -- stages --------------------------------------------------------------------------------------------------


def _data(context: Context) -> dict[str, Any]:
    from lab.scenes.preview import write_preview
    from lab.scenes.world import write_world

    data = context.params.data
    counts: dict[Split, int] = {
        "train": data.train_scenes,
        "validation": data.validation_scenes,
        "test": data.test_scenes,
    }
    write_world(context.out, context.world, counts, context.params.seed)
    write_preview(context.out, context.world)
    return {}


def _judge(context: Context) -> dict[str, Any]:
    from safetensors.torch import save_file

    from lab.evaluation.judging import judge_accuracy
    from lab.scenes.judge import train_judge
    from lab.scenes.world import read_split

    settings = context.params.judge
    train = read_split(context.output("data"), context.world, "train")
    test = read_split(context.output("data"), context.world, "test")
    judge = train_judge(
        train, settings.steps, settings.batch_size, settings.learning_rate, context.params.seed
    )
    save_file(judge.state_dict(), context.out / "judge.safetensors")
    return judge_accuracy(judge, test)


def _encoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.encoding import region_accuracy
    from lab.models.contrastive import ContrastiveModel
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.regions import RegionCollate, Rows
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.language import Language
    from lab.scenes.world import read_split
    from lab.training.modules import ContrastivePretraining

    settings = context.params.fitted("encoder")
    args = (context.world.image_size,)
    spec = context.params.spec("encoder", context.params.encoder)
    split = read_split(context.output("data"), context.world, "train")
    language = Language(context.world)
    tokenizer = Tokenizer.of_words(language.vocabulary())
    encoder = build("encoder", spec, *args)
    model = ContrastiveModel(encoder, len(tokenizer))
    module = ContrastivePretraining(
        model,
        settings.losses,
        learning_rates={"": settings.learning_rate},
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    collate = RegionCollate(split, language, tokenizer)
    rows = Rows(len(split.scenes), context.params.seed)
    seconds = context.fit(module, rows, collate, settings)
    save_component(context.out, "encoder", spec, args, encoder)
    held_out = RegionCollate(
        read_split(context.output("data"), context.world, "validation"), language, tokenizer
    )
    return {**region_accuracy(model.eval(), held_out), "cost/train_seconds": round(seconds, 1)}


def _text_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.understanding import text_accuracy
    from lab.models.arm import TOKENIZER, unadapted
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.batch import Collate
    from lab.samples.mixture import Mixture
    from lab.samples.tokenizer import Tokenizer
    from lab.training.modules import TextPretraining

    settings, params = context.params.fitted("text_decoder"), context.params
    tasks = context.tasks("train")
    spec = params.spec("text_decoder", params.text_decoder)
    pretrained = params.setting("text_decoder", params.text_decoder, "path")
    tokenizer = Tokenizer.load(pretrained) if pretrained else Tokenizer.of_words(tasks.language.vocabulary())
    spec = unadapted(spec)
    args = (len(tokenizer),)
    model = build("text_decoder", spec, *args)
    module = TextPretraining(
        model,
        {"": settings.learning_rate},
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    collate = Collate(tokenizer, 0, 0, tuple(tasks.tasks))
    mix = Mixture(tasks, {"text": 1.0}, settings.steps * settings.batch_size, params.seed)
    seconds = context.fit(module, mix, collate, settings)
    save_component(context.out, "text_decoder", spec, args, model)
    tokenizer.save(context.out / TOKENIZER)
    metrics = text_accuracy(
        model.eval(), context.tasks("validation"), tokenizer, params.stages.evaluate.texts
    )
    return {**metrics, "cost/train_seconds": round(seconds, 1)}


def _represent(context: Context) -> dict[str, Any]:
    import torch

    from lab.models.representation import RepresentationModel
    from lab.models.store import load_component, save_component
    from lab.registry import build
    from lab.samples.regions import RegionCollate, Rows
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.language import Language
    from lab.scenes.world import read_split
    from lab.training.modules import RepresentationTraining

    settings, params, trained = context.params.fitted("represent"), context.params, context.trained()
    encoder = load_component(trained["encoder"])
    args = (encoder.dim, _decoder_width(params, trained), encoder.num_tokens)
    spec = params.spec("connector", context.connector)
    split = read_split(context.output("data"), context.world, "train")
    language = Language(context.world)
    tokenizer = Tokenizer.of_words(language.vocabulary())
    torch.manual_seed(params.seed)
    connector = build("connector", spec, *args)
    model = RepresentationModel(encoder.requires_grad_(False), connector, len(tokenizer))
    module = RepresentationTraining(
        model,
        {"": settings.learning_rate},
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    collate = RegionCollate(split, language, tokenizer)
    seconds = context.fit(module, Rows(len(split.scenes), params.seed), collate, settings)
    save_component(context.out / "connector", "connector", spec, args, connector)
    return {"cost/train_seconds": round(seconds, 1)}


def _image_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.judging import load_judge, reconstruction_metrics
    from lab.models.arm import new_part
    from lab.models.autoencoder import ImageAutoencoder
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.regions import PixelCollate, Rows
    from lab.scenes.world import read_split
    from lab.training.modules import ImageDecoderTraining

    settings, params, trained = context.params.fitted("image_decoder"), context.params, context.trained()
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
    size = context.world.image_size
    encoder = new_part(params, "encoder", params.encoder, (size,), trained, built)
    connector, space = None, (encoder.dim, encoder.num_tokens)
    if params.targets == "connector":
        dim = _decoder_width(params, trained)
        args = (encoder.dim, dim, encoder.num_tokens)
        connector = new_part(params, "connector", context.connector, args, trained, built)
        space = dim, connector.num_tokens
    image_args = (*space, size)
    spec = params.spec("image_decoder", str(params.image_decoder))
    model = ImageAutoencoder(encoder, connector, build("image_decoder", spec, *image_args))
    module = ImageDecoderTraining(
        model,
        settings.noise,
        settings.trainable,
        learning_rates={"": settings.learning_rate},
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    split = read_split(context.output("data"), context.world, "train")
    seconds = context.fit(module, Rows(len(split.scenes), params.seed), PixelCollate(split), settings)
    save_component(context.out, "image_decoder", spec, image_args, model.image_decoder)  # type: ignore[arg-type]
    for role, (part_spec, part_args) in built.items():
        if role in settings.trainable:
            save_component(context.out / role, role, part_spec, part_args, getattr(model, role))
    judge = load_judge(context.output("judge"), context.world)
    test = read_split(context.output("data"), context.world, "test")
    metrics = reconstruction_metrics(model.eval(), judge, test, params.stages.evaluate.prompts, params.seed)
    return {**metrics, "cost/train_seconds": round(seconds, 1)}


def _decoder_width(params: Params, trained: Mapping[str, Path]) -> int:
    """Width of the language model, where a stage needs that and nothing else of it."""
    from lab.models.store import load_component

    stated = params.setting("text_decoder", params.text_decoder, "dim")
    return int(stated or load_component(trained["text_decoder"]).dim)


def _unified(context: Context) -> dict[str, Any]:
    """Alignment, pretraining or instruction tuning, whichever the stage is."""
    import numpy as np
    import torch

    from lab.models.arm import load_arm, new_arm

    params, trained = context.params, context.trained()
    train = context.tasks("train")
    decoder = context.image_decoder()
    before = [name for name in UNIFIED if name in params.recipe[: params.recipe.index(context.stage)]]
    if before:
        arm = load_arm(trained["encoder"].parent, decoder)
    else:
        words = train.language.vocabulary()
        arm = new_arm(params, context.connector, trained, words, decoder)
        head = arm.model.visual_head
        if head is not None:
            with torch.no_grad():  # what the tokens look like that the visual head is to produce
                rows = np.arange(min(1000, len(train)))
                arm.model.eval()
                tokens = arm.model.image_tokens(torch.from_numpy(train.split.pixels(rows)))
                source = arm.model.encoder if params.targets == "encoder" else arm.model.connector
                try:
                    head.prepare(tokens, getattr(source, "codebook", None))
                except ValueError as error:
                    raise LabError(f"visual_head {params.visual_head}: {error}") from error
    settings = params.fitted(context.stage)
    mix = params.mixes[context.mix] if context.stage == "instruct" else settings.mix
    return _train_arm(context, arm, settings, mix)


def _train_arm(context: Context, arm: Any, settings: Any, mix: Mapping[str, float]) -> dict[str, Any]:
    from lab.evaluation.losses import validation_losses
    from lab.samples.mixture import Mixture
    from lab.training.modules import UnifiedTraining

    train = context.tasks("train")
    module = UnifiedTraining(
        arm.model,
        settings.trainable,
        settings.image_weight,
        arm.image_marks,
        learning_rates=settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    collate = arm.collate(tuple(train.tasks))
    dataset = Mixture(train, mix, settings.steps * settings.batch_size, context.params.seed)
    seconds = context.fit(module, dataset, collate, settings)
    arm.model.eval()
    arm.save(context.out)
    losses = validation_losses(arm.model, context.tasks("validation"), collate, mix, context.params.seed)
    consumed = {f"mix/{task}": dataset.cycle.count(task) / len(dataset.cycle) for task in mix}
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    cost = {
        "cost/train_seconds": round(seconds, 1),
        "cost/samples": len(dataset),
        "cost/trained_parameters": trained,
    }
    return losses | consumed | cost


def _evaluate(context: Context) -> dict[str, Any]:
    from lab.evaluation.arm import evaluate_arm
    from lab.evaluation.judging import load_judge
    from lab.models.arm import load_arm

    params, trained = context.params, context.trained()
    arm = load_arm(trained["encoder"].parent)
    judge = load_judge(context.output("judge"), context.world)
    result = evaluate_arm(
        arm,
        context.image_decoder(),
        judge,
        context.tasks("test"),
        params.stages.evaluate,
        params.seed,
        context.out,
    )
    judged = json.loads((context.folder / "metrics" / "judge.json").read_text())
    name = trained["encoder"].parent.relative_to(context.folder / "output")
    tuned = json.loads((context.folder / "metrics" / f"{name}.json").read_text())
    result["metrics"] |= judged | {"cost/train_seconds": tuned["cost/train_seconds"]}
    if params.system:
        result["metrics"] |= _untrained(context, judge)
    arm_tags = {"connector": context.connector, "mix": context.mix, **params.words(), "seed": params.seed}
    if context.tracked is not None and (context.out / "samples.png").exists():
        context.tracked.artifact(context.out / "samples.png", "samples")
    return {"arm": arm_tags, **result}


def _untrained(context: Context, judge: Any) -> dict[str, float]:
    """What a published system reaches before its first joint stage, on fewer samples."""
    from lab.evaluation.arm import evaluate_arm
    from lab.models.arm import new_arm

    params = context.params
    first = next(name for name in params.recipe if name in UNIFIED)
    before = replace(context, stage=first).trained()
    tasks = context.tasks("test")
    arm = new_arm(params, context.connector, before, tasks.language.vocabulary())
    arm.model.eval()
    few = replace(params.stages.evaluate, questions=20, captions=20, prompts=40, edits=10, texts=20)
    decoder = context.image_decoder()
    with TemporaryDirectory() as scratch:
        found = evaluate_arm(arm, decoder, judge, tasks, few, params.seed, Path(scratch))["metrics"]
    kinds = ("understanding/", "generation/")
    return {f"untrained/{name}": value for name, value in found.items() if name.startswith(kinds)}


def _compare(context: Context) -> dict[str, Any]:
    from lab.reports.comparison import write_comparison

    return write_comparison(context.folder, context.out, context.tracked)


_METRICS_NAMES = {"compare": "comparison"}
STAGES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "data": _data,
    "judge": _judge,
    "encoder": _encoder,
    "text_decoder": _text_decoder,
    "image_decoder": _image_decoder,
    "represent": _represent,
    **dict.fromkeys(UNIFIED, _unified),
    "evaluate": _evaluate,
    "compare": _compare,
}


def stages_of(params: Params) -> dict[str, Stage]:
    """The stages of a pipeline in the order of its recipe, and the comparison of all arms."""
    stages: dict[str, Stage] = {}
    holds: dict[
        str, tuple[str, str]
    ] = {}  # role -> the output that has it after the stages so far, and where
    for name in params.recipe:
        roles = _roles(params, name)
        taken = {role: place for role, place in holds.items() if role in roles and role != name}
        fixed = [] if name == "data" else ["data"]
        fixed += ["judge"] if name in ("image_decoder", "evaluate") else []
        stage = Stage(
            keys=("seed", "world", *_keys(name)),
            roles=roles,
            upstream=tuple(dict.fromkeys([*fixed, *(output for output, _ in taken.values())])),
            code=_code(name),
            run=STAGES[name],
            parts={role: f"{output}/{below}".rstrip("/") for role, (output, below) in taken.items()},
        )
        stages[name] = stage
        instance = "-".join(f"{{{kind}}}" for kind in instance_kinds(stage))
        holds |= {role: (f"{name}/{instance}".rstrip("/"), below) for role, below in _makes(params, name)}
    stages["compare"] = Stage(("name", "connectors", "mixes"), (), (), ("lab/reports",), _compare)
    return stages


def _keys(name: str) -> tuple[str, ...]:
    """What a stage reads of params.yaml beside seed, world and its components."""
    if name in ("data", "judge"):
        return (name,)
    scored = {"text_decoder": ("stages.evaluate.texts",), "image_decoder": ("stages.evaluate.prompts",)}
    mix = ("mixes.{mix}",) if name == "instruct" else ()
    space = ("targets",) if name in ("image_decoder", *UNIFIED, "evaluate") else ()
    return (f"stages.{name}", *scored.get(name, ()), *mix, *space)


def _code(name: str) -> tuple[str, ...]:
    if name in ("data", "judge"):
        return ("lab/scenes",)
    return (*_MODEL_CODE, "lab/evaluation") if name == "evaluate" else _MODEL_CODE


def _roles(params: Params, name: str) -> tuple[str, ...]:
    """Components that a stage builds or loads."""
    system = tuple(role for role in ROLES if role == "connector" or getattr(params, role) is not None)
    last = ("image_decoder",) if params.image_decoder is not None else ()
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
