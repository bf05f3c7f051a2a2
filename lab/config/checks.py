"""What is wrong with parameters whose types are right: words, settings, recipes, mixes, stages."""

from __future__ import annotations

from collections.abc import Sequence

from lab.config.datasets import mistakes_in_data_sets
from lab.config.params import Params
from lab.config.sections import AlignParams, InstructParams
from lab.config.words import (
    BUDGETS,
    DRAWING,
    LAYOUTS,
    LOCATION_TASKS,
    OPTIONAL,
    PREFLIGHT,
    RECIPE,
    ROLES,
    STRATEGIES,
    SWITCH,
    TASKS,
    WEIGHTINGS,
    WORDS,
)
from lab.errors import LabError, nearest
from lab.models.caching import FEATURES
from lab.registry import check, words
from lab.samples.mix import MixTree, parse


def mistakes_in_words(params: Params) -> list[str]:
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


def mistakes_in_recipe(params: Params) -> list[str]:
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
    mistakes += mistakes_in_data_sets(params)
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
