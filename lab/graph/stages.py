"""The stages of the pipeline: what each reads, and what it does.

`dvc.yaml` calls them as `lab stage NAME [INSTANCE]` in the folder of a `params.yaml`. The table STAGES says
what a stage depends on; a test holds `dvc.yaml` to it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.config import FitParams, Params, load_params
from lab.errors import LabError, nearest
from lab.graph.node import Node, clear, identify, identity_of, publish, write_metrics
from lab.registry import ROLES

if TYPE_CHECKING:
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import Split, World
    from lab.tracking import Run

SHARED = "shared"  # the MLflow parent of stages that all arms share
_MODEL_CODE = ("components/layers", "lab/models", "lab/samples", "lab/scenes", "lab/training")


@dataclass(frozen=True)
class Stage:
    """What a stage reads.

    Attributes:
        keys: dotted keys of params.yaml; {connector} and {mix} stand for the instance.
        roles: components it builds; the word, the settings and the file of each are read.
        upstream: outputs it takes, {connector} and {mix} likewise.
        code: further files and folders of the repository.
        run: does the work.
    """

    keys: tuple[str, ...]
    roles: tuple[str, ...]
    upstream: tuple[str, ...]
    code: tuple[str, ...]
    run: Callable[[Context], dict[str, Any]]


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
        return f"{self.connector}-{self.mix}"

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
            params.world.image_size, params.world.grid, params.world.max_digits, params.world.variants
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
    if name not in STAGES:
        raise LabError(f"no stage '{name}'{nearest(name, STAGES)}")
    wanted = instance_kinds(STAGES[name])
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
    stage = STAGES[name]
    upstream = {
        text.format(**given): identity_of(folder / "output" / text.format(**given)) for text in stage.upstream
    }
    return identify(
        name,
        "-".join(given.values()),
        parameters_of(params, stage, given),
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


def code_of(params: Params, stage: Stage, given: Mapping[str, str]) -> list[str]:
    """Files and folders of the repository that shape the stage's numbers."""
    words = {
        role: given["connector"] if role == "connector" else getattr(params, role) for role in stage.roles
    }
    return [*stage.code, *(f"components/{ROLES[role]}/{word}.py" for role, word in words.items())]


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
            metrics = STAGES[context.stage].run(context)
        numbers = metrics.get("metrics", metrics)
        run.metrics({name: value for name, value in numbers.items() if isinstance(value, (int, float))})
    if metrics:
        write_metrics(context.folder / "metrics" / context.metrics_name, metrics)
    clear(node.work)
    return metrics


def tracked_run(context: Context) -> AbstractContextManager[Run]:
    """The MLflow run of a stage, under its arm."""
    from lab.tracking import start_run

    params, stage = context.params, STAGES[context.stage]
    given = {"connector": context.connector, "mix": context.mix}
    tags = {
        role: getattr(params, role) for role in ("encoder", "text_decoder", "visual_head", "image_decoder")
    }
    tags |= {"seed": str(params.seed), **{kind: word for kind, word in given.items() if word}}
    return start_run(
        experiment=params.name,
        arm=context.arm if context.mix else SHARED,
        stage=context.stage,
        name=" ".join(filter(None, [context.stage, context.connector, context.mix])),
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

    settings = context.params.stages.encoder
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
    from lab.models.arm import TOKENIZER
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.batch import Collate
    from lab.samples.mixture import Mixture
    from lab.samples.tokenizer import Tokenizer
    from lab.training.modules import TextPretraining

    settings, params = context.params.stages.text_decoder, context.params
    tasks = context.tasks("train")
    spec = params.spec("text_decoder", params.text_decoder)
    pretrained = spec.get("path")
    tokenizer = Tokenizer.load(pretrained) if pretrained else Tokenizer.of_words(tasks.language.vocabulary())
    spec = {key: value for key, value in spec.items() if not key.startswith("lora_")}
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


def _image_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.judging import load_judge, reconstruction_metrics
    from lab.models.store import load_component, save_component
    from lab.registry import build
    from lab.samples.regions import PixelCollate, Rows
    from lab.scenes.world import read_split
    from lab.training.modules import ImageDecoderTraining

    settings, params = context.params.stages.image_decoder, context.params
    encoder = load_component(context.output("encoder"))
    args = (encoder.dim, encoder.num_tokens, context.world.image_size)
    spec = params.spec("image_decoder", params.image_decoder)
    model = build("image_decoder", spec, *args)
    module = ImageDecoderTraining(
        model,
        encoder,
        settings.noise,
        learning_rates={"": settings.learning_rate},
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
    )
    split = read_split(context.output("data"), context.world, "train")
    seconds = context.fit(module, Rows(len(split.scenes), params.seed), PixelCollate(split), settings)
    save_component(context.out, "image_decoder", spec, args, model)
    judge = load_judge(context.output("judge"), context.world)
    test = read_split(context.output("data"), context.world, "test")
    metrics = reconstruction_metrics(
        encoder, model.eval(), judge, test, params.stages.evaluate.prompts, params.seed
    )
    return {**metrics, "cost/train_seconds": round(seconds, 1)}


def _align(context: Context) -> dict[str, Any]:
    import torch

    from lab.models.arm import new_arm

    params = context.params
    arm = new_arm(
        params, context.connector, context.output("encoder"), context.output("text_decoder"), params.seed
    )
    train = context.tasks("train")
    with torch.no_grad():  # statistics of the tokens that the visual head regresses
        import numpy as np

        rows = np.arange(min(1000, len(train)))
        arm.model.visual_head.standardise(arm.model.encoder(torch.from_numpy(train.split.pixels(rows))))
    return _train_arm(context, arm, params.stages.align, params.stages.align.mix)


def _instruct(context: Context) -> dict[str, Any]:
    from lab.models.arm import load_arm

    arm = load_arm(context.output(f"align/{context.connector}"))
    return _train_arm(context, arm, context.params.stages.instruct, context.params.mixes[context.mix])


def _train_arm(context: Context, arm: Any, settings: Any, mix: Mapping[str, float]) -> dict[str, Any]:
    from lab.evaluation.losses import validation_losses
    from lab.samples.mixture import Mixture
    from lab.training.modules import UnifiedTraining

    train = context.tasks("train")
    arm.model.own_feedback = settings.own_feedback
    module = UnifiedTraining(
        arm.model,
        settings.trainable,
        settings.image_weight,
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
    from lab.models.store import load_component

    arm = load_arm(context.output(f"instruct/{context.arm}"))
    judge = load_judge(context.output("judge"), context.world)
    image_decoder = load_component(context.output("image_decoder"))
    result = evaluate_arm(
        arm,
        image_decoder,
        judge,
        context.tasks("test"),
        context.params.stages.evaluate,
        context.params.seed,
        context.out,
    )
    judged = json.loads((context.folder / "metrics" / "judge.json").read_text())
    trained = json.loads((context.folder / "metrics" / "instruct" / f"{context.arm}.json").read_text())
    result["metrics"] |= judged | {"cost/train_seconds": trained["cost/train_seconds"]}
    params = context.params
    words = {
        role: getattr(params, role) for role in ("encoder", "text_decoder", "visual_head", "image_decoder")
    }
    arm_tags = {"connector": context.connector, "mix": context.mix, **words, "seed": params.seed}
    if context.tracked is not None:
        context.tracked.artifact(context.out / "samples.png", "samples")
    return {"arm": arm_tags, **result}


def _compare(context: Context) -> dict[str, Any]:
    from lab.reports.comparison import write_comparison

    return write_comparison(context.folder, context.out, context.tracked)


_METRICS_NAMES = {"compare": "comparison"}
STAGES: dict[str, Stage] = {
    "data": Stage(("seed", "world", "data"), (), (), ("lab/scenes",), _data),
    "judge": Stage(("seed", "world", "judge"), (), ("data",), ("lab/scenes",), _judge),
    "encoder": Stage(("seed", "world", "stages.encoder"), ("encoder",), ("data",), _MODEL_CODE, _encoder),
    "text_decoder": Stage(
        ("seed", "world", "stages.text_decoder", "stages.evaluate.texts"),
        ("text_decoder",),
        ("data",),
        _MODEL_CODE,
        _text_decoder,
    ),
    "image_decoder": Stage(
        ("seed", "world", "stages.image_decoder", "stages.evaluate.prompts"),
        ("encoder", "image_decoder"),
        ("data", "judge", "encoder"),
        _MODEL_CODE,
        _image_decoder,
    ),
    "align": Stage(
        ("seed", "world", "stages.align"),
        ("encoder", "connector", "text_decoder", "visual_head"),
        ("data", "encoder", "text_decoder"),
        _MODEL_CODE,
        _align,
    ),
    "instruct": Stage(
        ("seed", "world", "stages.instruct", "mixes.{mix}"),
        ("encoder", "connector", "text_decoder", "visual_head"),
        ("data", "align/{connector}"),
        _MODEL_CODE,
        _instruct,
    ),
    "evaluate": Stage(
        ("seed", "world", "stages.evaluate"),
        ("encoder", "connector", "text_decoder", "visual_head", "image_decoder"),
        ("data", "judge", "image_decoder", "instruct/{connector}-{mix}"),
        (*_MODEL_CODE, "lab/evaluation"),
        _evaluate,
    ),
    "compare": Stage(("name", "connectors", "mixes"), (), (), ("lab/reports",), _compare),
}
