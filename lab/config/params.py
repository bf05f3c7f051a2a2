"""A whole `params.yaml` as one object, and the tree that it becomes again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.config.sections import (
    DataParams,
    DataSetParams,
    JudgeParams,
    StagesParams,
    TrainerParams,
    WorldParams,
)
from lab.config.words import RECIPE
from lab.errors import LabError
from lab.models.caching import FEATURES
from lab.registry import describe
from lab.samples.mix import MixTree


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
        world, data, judge, stages: as in sections.py.
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
