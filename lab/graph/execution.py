"""What the stages do, and what happens around each: its inputs, its MLflow run, its output and metrics."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lab.config import (
    DataSetParams,
    FitParams,
    Params,
    TrainerParams,
    load_params,
    node_params,
    read_tree,
    unadapted,
)
from lab.errors import LabError, nearest
from lab.graph.claim import Claim, ClaimedError
from lab.graph.datasets import check_declared, hashes_of
from lab.graph.hashing import hashed
from lab.graph.node import (
    Node,
    clear,
    content_of,
    damage,
    identify,
    identity_of,
    publish,
    record_of,
    write_metrics,
)
from lab.graph.stages import (
    TRAINED,
    UNIFIED,
    code_of,
    data_sets_of,
    identified_by,
    instance_kinds,
    parameters_of,
    stages_of,
)
from lab.models.caching import FEATURES

if TYPE_CHECKING:
    from lab.models.arm import Arm
    from lab.samples.datasets import DataSet
    from lab.samples.features import Features
    from lab.samples.mix import MixTree
    from lab.samples.mixture import Mixture, Source
    from lab.samples.segments import Sample
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import Split, World
    from lab.tracking import Run

SHARED = "shared"  # the MLflow parent of stages that all arms share
_SEED = re.compile(r"(?:^|-)s(\d+)$")  # at the end of a label; all seeds are evaluated with the base's
_NUMBERS = {"compare": "comparison"}  # metrics files that are not called like their stage


@dataclass
class Context:
    """A stage in execution.

    Attributes:
        folder: of the pipeline.
        params: its parameters; of an ablation's node, those that its stage reads, the others None.
        stage: its name.
        connector, mix: the instance, "" where the stage has none.
        arm: under whose MLflow run this one is nested.
        node: its identity and folders.
        inputs: stage upstream -> its output folder; nothing else may be read.
        parts: role -> folder of the part that an earlier stage trained.
        reads: dotted key -> value of the parameters that it reads.
        numbers: the metrics file to write.
        numbers_of: stage upstream -> its metrics file.
        out: folder to write to; it becomes the output when the stage ends well.
        data_sets: entries of the data sets that it reads.
        tracked: the MLflow run.
        callbacks: of Lightning, for a stage that trains, beside its own.
        tags: of the MLflow run, beside those that follow from the parameters.
    """

    folder: Path
    params: Params
    stage: str
    connector: str
    mix: str
    arm: str
    node: Node
    inputs: Mapping[str, Path]
    parts: Mapping[str, Path]
    reads: Mapping[str, Any]
    numbers: Path
    numbers_of: Mapping[str, Path]
    data_sets: Mapping[str, DataSetParams] = field(default_factory=dict)
    out: Path = field(default_factory=Path)
    tracked: Run | None = None
    callbacks: tuple[Any, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def world(self) -> World:
        return world_of(self.params)

    def tasks(self, split: Split) -> SceneTasks:
        """The tasks of one split of the data."""
        from lab.scenes.tasks import SceneTasks
        from lab.scenes.world import read_split

        return SceneTasks(read_split(self.inputs["data"], self.world, split), self.params.world.turns)

    @cached_property
    def opened(self) -> dict[str, DataSet]:
        """The data sets that it reads, by name."""
        from lab.graph.datasets import open_data_set

        return {name: open_data_set(name, entry, self.folder) for name, entry in self.data_sets.items()}

    def sources(self, split: Split) -> dict[str, Source]:
        """All that a mix may name: the tasks of a split, then the data sets that have rows in it."""
        from lab.samples.datasets import DataSource

        found: dict[str, Source] = dict(self.tasks(split).sources())
        for name, data in self.opened.items():
            if split == "train" or len(data.rows(split)):
                found[name] = DataSource(data, split, self.world)
        return found

    def new_tokenizer(self) -> Tokenizer:
        """Of a language model that is made from scratch: the words of the world and of the data sets."""
        from lab.samples.tokenizer import Tokenizer
        from lab.scenes.language import Language

        more = sorted({word for data in self.opened.values() for word in data.words()})
        return Tokenizer.of_words(Language(self.world).vocabulary(), more)

    def mixture(self, stage: str, size: Callable[[Sample], int] | None = None) -> Mixture:
        """The samples of a stage that trains the unified model, this one or that whose features it caches.

        Args:
            stage: which.
            size: tokens of a sample, for a mix that counts them.
        """
        from lab.samples.mixture import Mixture

        settings = self.params.fitted(stage)
        length = settings.steps * settings.batch_size
        return Mixture(self.sources("train"), self.mix_of(stage), length, self.params.seed, size)

    def mix_of(self, stage: str) -> MixTree:
        """The mix of such a stage, as it is stated."""
        params = self.params
        stated: MixTree = params.mixes[self.mix] if stage == "instruct" else params.fitted(stage).mix
        return stated

    def image_decoder(self) -> Any:
        """The image decoder that an earlier stage trained, None where this stage needs none."""
        from lab.models.store import load_component

        folder = self.parts.get("image_decoder")
        return None if folder is None else load_component(folder)

    def fit(self, module: Any, dataset: Any, collate: Any, settings: FitParams) -> dict[str, Any]:
        """Trains; returns what that cost, as metrics. Of several processes only that of rank 0 returns."""
        from lab.training.fit import FitSettings, fit
        from lab.training.processes import is_rank_zero

        names = FitSettings.__dataclass_fields__
        costs = fit(
            module,
            dataset,
            collate,
            FitSettings(**{name: value for name, value in vars(settings).items() if name in names}),
            self.node.work,
            self.node.label,
            self.tracked,
            self.callbacks,
            self.params.trainer,
        )
        if not is_rank_zero():
            raise SystemExit(0)
        return costs


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
        name: of the stage; of the node where the folder is an ablation's.
        instance: connector word and mix name, as far as the stage of a pipeline has them.

    Returns:
        The stage's metrics.

    Raises:
        LabError: whatever the person can mend.
    """
    return execute(prepare_stage(Path.cwd(), name, *instance))


def prepare_stage(folder: Path, name: str, *instance: str) -> Context:
    """Finds what a stage reads, of the pipeline or the ablation of a folder.

    Raises:
        LabError: there is no such stage, or `dvc.yaml` does not say what it depends on.
    """
    if (folder / "ablation.yaml").exists():
        return prepare_node(folder, name)
    params = load_params(folder / "params.yaml")
    context = prepare(folder, params, name, *instance)
    check_declared(folder, params, name, {"connector": context.connector, "mix": context.mix})
    return context


def prepare(folder: Path, params: Params, name: str, *instance: str, home: Path | None = None) -> Context:
    """Checks the name and instance of a pipeline's stage and finds what it reads.

    Args:
        folder: of the pipeline.
        params: of the pipeline.
        name, instance: which stage.
        home: whose `.lab` keeps resumable state, the folder itself if not stated.

    Raises:
        LabError: an unknown name, or an instance that params.yaml does not have.
    """
    stages = stages_of(params)
    if name not in stages:
        raise LabError(f"no stage '{name}'{nearest(name, stages)}")
    stage = stages[name]
    wanted = instance_kinds(stage)
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
    upstream = {text.partition("/")[0]: text.format(**given) for text in stage.upstream}
    inputs = {word: folder / "output" / output for word, output in upstream.items()}
    taken = {upstream[word]: identity_of(place) for word, place in inputs.items()}
    entries = {one: params.datasets[one] for one in data_sets_of(params, name, given)}
    content = content_of(
        name,
        label,
        identified_by(params, name, given),
        code_of(params, stage, given),
        taken | hashes_of(entries, folder),
    )
    own_arm = "mix" in given or (params.system and instance)
    return Context(
        folder=folder,
        params=params,
        stage=name,
        connector=given.get("connector", ""),
        mix=given.get("mix", ""),
        arm=(params.system or label) if own_arm else SHARED,
        node=Node(name, label, content, folder / "output" / name / label, _work(home or folder, content)),
        inputs=inputs,
        parts={role: inputs[word] / below for role, (word, below) in stage.parts.items()},
        reads=parameters_of(params, stage, given),
        numbers=folder / "metrics" / f"{f'{name}/{label}' if label else _NUMBERS.get(name, name)}.json",
        numbers_of={word: folder / "metrics" / f"{upstream[word]}.json" for word in stage.numbers},
        data_sets=entries,
    )


def prepare_node(folder: Path, name: str) -> Context:
    """Finds what a node of an ablation reads, as it was compiled.

    Args:
        folder: of the ablation.
        name: of the node, such as `instruct@q_former-s0`, or `compare`.

    Raises:
        LabError: there is no such node.
    """
    stage, _, label = name.partition("@")
    file = folder / "nodes" / label / f"{stage}.yaml"
    if name == "compare":
        file = folder / "compare.yaml"
    elif not label or not file.exists():
        known = [f"{path.stem}@{path.parent.name}" for path in folder.glob("nodes/*/*.yaml")]
        raise LabError(f"no node '{name}'{nearest(name, [*known, 'compare'])}")
    tree = read_tree(file)
    if name == "compare":
        content = content_of(name, "", tree, ["lab/reports"], {})
        node = Node(name, "", content, folder / "output" / name, _work(folder, content))
        params = node_params({}, folder.name)
        numbers = folder / "metrics" / f"{_NUMBERS[name]}.json"
        return Context(folder, params, name, "", "", SHARED, node, {}, {}, {}, numbers, {})
    places = {word: f"{word}/{at}" for word, at in tree["inputs"].items()}
    inputs = {word: folder / "output" / place for word, place in places.items()}
    reads = _flat(tree["params"])
    upstream = {places[word]: identity_of(place) for word, place in inputs.items()}
    params = replace(node_params(tree["params"], folder.name), trainer=_placement(folder, stage))
    entries = params.datasets or {}  # None where it reads none
    content = content_of(stage, label, reads, tree["code"], upstream | hashes_of(entries, folder))
    return Context(
        folder=folder,
        params=params,
        stage=stage,
        connector=tree["connector"],
        mix=tree["mix"],
        arm=tree["arm"] or SHARED,
        node=Node(stage, label, content, folder / "output" / stage / label, _work(folder, content)),
        inputs=inputs,
        parts={role: folder / "output" / place for role, place in tree["parts"].items()},
        reads=reads,
        numbers=folder / "metrics" / stage / f"{label}.json",
        numbers_of={word: folder / "metrics" / f"{places[word]}.json" for word in tree["numbers"]},
        data_sets=entries,
        tags={"ablation": folder.name} | ({"seed": seed[1]} if (seed := _SEED.search(label)) else {}),
    )


def _placement(folder: Path, stage: str) -> TrainerParams:
    """Where the declaration says that a stage trains. No number follows from it, so no node depends on it."""
    from lab.graph.ablation import resources_of

    found = resources_of(folder / "ablation.yaml", stage)
    return TrainerParams(
        strategy=found.strategy, devices=found.tasks, num_nodes=found.nodes, layout=found.layout
    )


def execute(context: Context) -> dict[str, Any]:
    """Runs a prepared stage: tracks it, publishes output and metrics, removes resumable state.

    What an earlier attempt has published, and was stopped before anybody recorded it, stands.

    Raises:
        ClaimedError: another attempt works on it.
        LabError: an output that it takes is damaged, or whatever else the person can mend.
    """
    from lab.training.processes import is_rank_zero

    node = context.node
    if not is_rank_zero():
        _assist(context)
        return {}
    home = node.work.parents[2]
    name = node.output.relative_to(home).as_posix().replace("/", "~")
    with Claim(home / ".lab" / "claims" / name, os.environ.get("LAB_ATTEMPT", "")) as claim:
        metrics = _published(context)
        if metrics is not None:
            print(f"{node.label}: done before", flush=True)
        else:
            for place in context.inputs.values():
                if fault := damage(place):
                    raise LabError(
                        f"{node.label}: {fault}; `lab graph run` or `dvc checkout --force` mends it"
                    )
            metrics = _attempt(context, claim)
    clear(node.work)
    return metrics


def _attempt(context: Context, claim: Claim) -> dict[str, Any]:
    """Works; where another attempt took over meanwhile, says so, whatever it came to.

    Raises:
        ClaimedError: another attempt took over.
    """
    try:
        return _work_on(context, claim)
    except (OSError, ClaimedError):
        if _published(context) is not None:
            clear(context.node.work)
        with claim.fence():  # who took over has removed what this attempt had written
            raise


def _assist(context: Context) -> None:
    """Trains with the process of rank 0, which does all else."""
    if context.stage in TRAINED and _published(context) is None:
        _prepare_torch(context)
        with TemporaryDirectory() as scratch:
            context.out = Path(scratch)
            WORK[context.stage](context)


def _prepare_torch(context: Context) -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", context.params.threads)))
    torch.manual_seed(context.params.seed)


def _work_on(context: Context, claim: Claim) -> dict[str, Any]:
    if context.stage != "compare":
        _prepare_torch(context)
    with tracked_run(context) as run:
        context.tracked = run
        _record_data(context, run)
        with publish(context.node, claim.fence()) as out:
            context.out = out
            metrics = WORK[context.stage](context)
            if metrics:  # before the output: who finds the output finds its metrics
                write_metrics(context.numbers, metrics)
        numbers = metrics.get("metrics", metrics)
        run.metrics({name: value for name, value in numbers.items() if isinstance(value, (int, float))})
        if context.stage == "evaluate":
            from lab.graph.served import record_model

            record_model(context, run)
    return metrics


def _published(context: Context) -> dict[str, Any] | None:
    """The metrics of an output that is there and whole, None where the stage has to run."""
    output, numbers = context.node.output, context.numbers
    try:
        if context.stage == "compare" or identity_of(output) != context.node.identity or damage(output):
            return None  # a comparison reads more than it says of a pipeline, and takes seconds
        return dict(json.loads(numbers.read_text())) if context.stage != "data" else {}
    except (LabError, OSError, ValueError):
        return None


def _work(folder: Path, content: Mapping[str, Any]) -> Path:
    return folder / ".lab" / "work" / identify(content)


def tracked_run(context: Context) -> AbstractContextManager[Run]:
    """The MLflow run of a stage, under its arm."""
    from lab.tracking import start_run

    params = context.params
    given = {"connector": context.connector, "mix": context.mix}
    tags = {**params.words(), **({"system": params.system} if params.system else {})}
    tags |= {"seed": str(params.seed), **{kind: word for kind, word in given.items() if word}, **context.tags}
    name = [context.stage, params.system or context.node.instance.replace("-", " ")]
    return start_run(
        experiment=params.name,
        arm=context.arm,
        stage=context.stage,
        name=" ".join(filter(None, name)),
        identity=context.node.identity,
        params=_flat(context.reads),
        tags=tags,
    )


def _record_data(context: Context, run: Run) -> None:
    """Names the data and their versions: registered sets, and scenes as the node that wrote them says."""
    if "data" not in context.inputs or not run.recorded:
        return
    use = "evaluation" if context.stage == "evaluate" else "training"
    for path, digest in hashes_of(context.data_sets, context.folder).items():
        name = path.rpartition("/")[2]
        entry = context.data_sets[name]
        run.dataset(name, digest, use, {"format": entry.format, "policy": entry.policy})
    place = context.inputs["data"]
    made_with = record_of(place)["parameters"]
    size = context.params.world.image_size
    image = {
        "name": "image",
        "type": "tensor",
        "tensor-spec": {"dtype": "float32", "shape": [-1, 3, size, size]},
    }
    run.dataset(
        "scenes",
        hashed(place).md5,
        use,
        made_with.get("data"),
        {"mlflow_tensorspec": {"features": json.dumps([image]), "targets": None}},
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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
    train = read_split(context.inputs["data"], context.world, "train")
    test = read_split(context.inputs["data"], context.world, "test")
    judge = train_judge(
        train, settings.steps, settings.batch_size, settings.learning_rate, context.params.seed
    )
    save_file(judge.state_dict(), context.out / "judge.safetensors")
    return judge_accuracy(judge, test)


def _encoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.encoding import region_accuracy
    from lab.models.contrastive import ContrastiveModel, save_contrastive
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
    split = read_split(context.inputs["data"], context.world, "train")
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
    costs = context.fit(module, rows, collate, settings)
    save_component(context.out, "encoder", spec, args, encoder)
    save_contrastive(context.out, model)
    held_out = RegionCollate(
        read_split(context.inputs["data"], context.world, "validation"), language, tokenizer
    )
    return {**region_accuracy(model.eval(), held_out), **costs}


def _text_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.understanding import text_accuracy
    from lab.models.arm import TOKENIZER
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
    tokenizer = Tokenizer.load(pretrained) if pretrained else context.new_tokenizer()
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
    mix = Mixture(tasks.sources(), {"text": 1.0}, settings.steps * settings.batch_size, params.seed)
    costs = context.fit(module, mix, collate, settings)
    save_component(context.out, "text_decoder", spec, args, model)
    tokenizer.save(context.out / TOKENIZER)
    metrics = text_accuracy(
        model.eval(), context.tasks("validation"), tokenizer, params.stages.evaluate.texts
    )
    return {**metrics, **costs}


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

    settings, params, trained = context.params.fitted("represent"), context.params, context.parts
    encoder = load_component(trained["encoder"])
    args = (encoder.dim, _decoder_width(params, trained), encoder.num_tokens)
    spec = params.spec("connector", context.connector)
    split = read_split(context.inputs["data"], context.world, "train")
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
    costs = context.fit(module, Rows(len(split.scenes), params.seed), collate, settings)
    save_component(context.out / "connector", "connector", spec, args, connector)
    return costs


def _image_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.judging import load_judge, reconstruction_metrics
    from lab.models.arm import new_part
    from lab.models.autoencoder import ImageAutoencoder
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.regions import PixelCollate, Rows
    from lab.scenes.world import read_split
    from lab.training.modules import ImageDecoderTraining

    settings, params, trained = context.params.fitted("image_decoder"), context.params, context.parts
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
    split = read_split(context.inputs["data"], context.world, "train")
    costs = context.fit(module, Rows(len(split.scenes), params.seed), PixelCollate(split), settings)
    save_component(context.out, "image_decoder", spec, image_args, model.image_decoder)  # type: ignore[arg-type]
    for role, (part_spec, part_args) in built.items():
        if role in settings.trainable:
            save_component(context.out / role, role, part_spec, part_args, getattr(model, role))
    judge = load_judge(context.inputs["judge"], context.world)
    test = read_split(context.inputs["data"], context.world, "test")
    metrics = reconstruction_metrics(model.eval(), judge, test, params.stages.evaluate.prompts, params.seed)
    return {**metrics, **costs}


def _decoder_width(params: Params, trained: Mapping[str, Path]) -> int:
    """Width of the language model, where a stage needs that and nothing else of it."""
    from lab.models.store import load_component

    stated = params.setting("text_decoder", params.text_decoder, "dim")
    return int(stated or load_component(trained["text_decoder"]).dim)


def _unified(context: Context) -> dict[str, Any]:
    """Alignment, pretraining or instruction tuning, whichever the stage is."""
    import torch

    from lab.graph.features.images import SHOWN
    from lab.graph.features.stage import features_of
    from lab.samples.batch import images_of

    params, features = context.params, features_of(context)
    train = context.tasks("train")
    arm = arm_of(context, features)
    head = arm.model.visual_head
    if head is not None and not continues(context):
        with torch.no_grad():  # what the tokens look like that the visual head is to produce
            arm.model.eval()
            shown = [train.picture(row) for row in range(min(SHOWN, len(train)))]
            tokens = arm.model.image_tokens(images_of(shown, features))
            source = arm.model.encoder if params.targets == "encoder" else arm.model.connector
            try:
                head.prepare(tokens, getattr(source, "codebook", None))
            except ValueError as error:
                raise LabError(f"visual_head {params.visual_head}: {error}") from error
    if f"{context.stage}_features" in context.inputs:
        torch.manual_seed(params.seed)  # whether or not an encoder was built, which draws random numbers
    return _train_arm(context, arm, features)


def continues(context: Context) -> bool:
    """Whether the stage goes on with an arm that an earlier stage trained."""
    return any(stage in context.inputs for stage in UNIFIED)


def arm_of(context: Context, features: Features | None) -> Arm:
    """The arm that a stage of the unified model starts with."""
    from lab.models.arm import load_arm, new_arm

    decoder = context.image_decoder()
    if continues(context):
        return load_arm(context.parts["encoder"].parent, decoder, features)
    tokenizer = context.new_tokenizer()
    return new_arm(context.params, context.connector, context.parts, tokenizer, decoder, features)


def _train_arm(context: Context, arm: Arm, features: Features | None) -> dict[str, Any]:
    from lab.evaluation.losses import validation_losses
    from lab.graph.preflight import preflight
    from lab.training.modules import UnifiedTraining

    drawn = [name for name, data in context.opened.items() if data.draws]
    if drawn and arm.model.visual_head is None:
        raise LabError(f"data set '{drawn[0]}': it has images to draw, but there is no visual_head")
    sources, settings = context.sources("train"), context.params.fitted(context.stage)
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
    collate = arm.collate(tuple(sources), features=features)
    dataset = context.mixture(context.stage, collate.length)
    faults = preflight(context, arm, dataset, collate)
    if context.stage == "instruct":
        from lab.graph.watching import looks

        context.callbacks += looks(context, arm)
    costs = context.fit(module, dataset, collate, settings)
    arm.model.eval()
    arm.save(context.out)
    shares = dataset.shares()
    losses = validation_losses(arm.model, context.sources("validation"), collate, shares, context.params.seed)
    consumed = {f"mix/{task}": share for task, share in shares.items()}
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    counted = {name: number for data in context.opened.values() for name, number in data.metrics().items()}
    return losses | consumed | counted | faults | costs | {"cost/trained_parameters": trained}


def _evaluate(context: Context) -> dict[str, Any]:
    from lab.evaluation.arm import evaluate_arm
    from lab.evaluation.judging import load_judge
    from lab.models.arm import load_arm

    params, trained = context.params, context.parts
    arm = load_arm(trained["encoder"].parent)
    judge = load_judge(context.inputs["judge"], context.world)
    result = evaluate_arm(
        arm,
        context.image_decoder(),
        judge,
        context.tasks("test"),
        params.stages.evaluate,
        params.seed,
        context.out,
    )
    judged, tuned = (json.loads(numbers.read_text()) for numbers in context.numbers_of.values())
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
    words = [context.connector, context.mix][: len(instance_kinds(stages_of(params)[first]))]
    before = prepare(context.folder, params, first, *words)
    tasks = context.tasks("test")
    arm = new_arm(params, context.connector, before.parts, before.new_tokenizer())
    arm.model.eval()
    few = replace(params.stages.evaluate, questions=20, captions=20, prompts=40, edits=10, texts=20)
    decoder = context.image_decoder()
    with TemporaryDirectory() as scratch:
        found = evaluate_arm(arm, decoder, judge, tasks, few, params.seed, Path(scratch))["metrics"]
    kinds = ("understanding/", "generation/")
    return {f"untrained/{name}": value for name, value in found.items() if name.startswith(kinds)}


def _compare(context: Context) -> dict[str, Any]:
    if (context.folder / "ablation.yaml").exists():
        from lab.reports.ablation import write_ablation

        return write_ablation(context.folder, context.out, context.tracked)
    from lab.reports.comparison import write_comparison

    return write_comparison(context.folder, context.out, context.tracked)


def _features(context: Context) -> dict[str, Any]:
    from lab.graph.features.stage import cache_features

    return cache_features(context)


WORK: dict[str, Callable[[Context], dict[str, Any]]] = {
    "data": _data,
    "judge": _judge,
    "encoder": _encoder,
    "text_decoder": _text_decoder,
    "image_decoder": _image_decoder,
    "represent": _represent,
    **dict.fromkeys(FEATURES, _features),
    **dict.fromkeys(UNIFIED, _unified),
    "evaluate": _evaluate,
    "compare": _compare,
}
