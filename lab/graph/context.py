"""A stage in execution: what it reads, from where, and where it writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.config import (
    DataSetParams,
    FitParams,
    Params,
    Switch,
    TrainerParams,
    load_params,
    node_params,
    read_tree,
)
from lab.errors import LabError, nearest
from lab.graph.datasets import check_declared, hashes_of
from lab.graph.node import Node, content_of, identify, identity_of
from lab.graph.stages import code_of, data_sets_of, identified_by, instance_kinds, parameters_of, stages_of

if TYPE_CHECKING:
    from lab.samples.datasets import DataSet
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
    reads = flat(tree["params"])
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
        strategy=found.strategy,
        devices=found.tasks,
        num_nodes=found.nodes,
        layout=found.layout,
        preflight=Switch(found.preflight),
    )


def _work(folder: Path, content: Mapping[str, Any]) -> Path:
    return folder / ".lab" / "work" / identify(content)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
