"""What a study has come to, as plain records: for tables, plots and reports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.reports.measures import measure_of
from lab.search.declaration import Declaration, read
from lab.search.storage import default_url, open_storage, shown, studies
from lab.search.trials import INFEASIBLE, PAUSED, REASON, Trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        number: in the study.
        state: complete, pruned, infeasible, failed, running, interrupted, paused or waiting.
        values: of the objectives, in their order; empty where they were not reached.
        chosen: what was drawn, as a person reads it: dotted key -> value, of a mix the share of each part.
        settings: the same as `lab train` takes it, with what is the same in every trial.
        metrics: all of the evaluation.
        seconds: how long it took, over all workers that were at it.
        curve: scores on the way by step.
        reason: why it failed, or what makes it infeasible.
    """

    number: int
    state: str
    values: tuple[float, ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def note(self) -> str:
        """What to say of it beside its numbers."""
        step = f" at step {max(self.curve)}" if self.curve and self.state != "complete" else ""
        return self.reason[:60] or ("" if self.state == "complete" else f"{self.state}{step}")


@dataclass(frozen=True)
class Sweep:
    """A study's trials, in order.

    Attributes:
        study: its name.
        objectives: metric -> maximize or minimize.
        keys: of what trials chose; of a mix of two parts the first alone, as the other follows.
        logarithmic: those that were drawn on a logarithmic scale.
        records: of all trials.
    """

    study: str
    objectives: Mapping[str, str]
    keys: tuple[str, ...]
    logarithmic: frozenset[str]
    records: tuple[Record, ...]

    @property
    def complete(self) -> list[Record]:
        return [record for record in self.records if record.values]

    @property
    def best(self) -> list[Record]:
        """The best trial; of several objectives those that no other beats in all, by the first of them."""
        found = [record for record in self.complete if not any(self.beats(o, record) for o in self.complete)]
        if len(self.objectives) == 1:
            return found[:1]
        return sorted(found, key=lambda record: record.values[0])

    def beats(self, one: Record, other: Record) -> bool:
        """Whether a trial is at least as good in everything and better in something."""
        signs = [1 if direction == "maximize" else -1 for direction in self.objectives.values()]
        gains = [s * (a - b) for s, a, b in zip(signs, one.values, other.values, strict=True)]
        return min(gains) >= 0 and max(gains) > 0


def load(declaration: str | Path, storage: str | None = None) -> Sweep:
    """Reads a study, finished or under way, in the folder of its params.yaml.

    Args:
        declaration: the YAML file.
        storage: its URL, if it is not where the declaration says or studies are kept by default.

    Raises:
        LabError: mistakes in the declaration, or it was never started.
    """
    sweep = read(Path(declaration), Path.cwd())
    url = storage or sweep.storage or default_url(sweep.study, several=False)
    if sweep.study not in studies(url):
        raise LabError(
            f"{declaration}: no trials yet in {shown(url)}; a study belongs to one declaration and one "
            f"params.yaml, and `lab sweep {declaration}` begins it"
        )
    return of_trials(Trials(sweep, open_storage(url), sweep.trials))


def of_trials(trials: Trials) -> Sweep:
    """The records of a study's trials."""
    space = trials.sweep.space
    records = tuple(_record(trial, trials) for trial in trials.all())
    known = {key for record in records for key in record.chosen}
    return Sweep(
        trials.sweep.study,
        dict(trials.sweep.objectives),
        tuple(key for dimension in space for key in dimension.shown if key in known),
        frozenset(one.key for one in space if one.kind == "log"),
        records,
    )


def importances(sweep: Sweep) -> dict[str, dict[str, float]]:
    """Objective -> setting -> share of the differences that it explains, by PED-ANOVA."""
    import optuna

    study = as_study(sweep)
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(sweep.objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials tell little: a reader sees how many there are
            try:
                shares = optuna.importance.get_param_importances(study, target=_value_at(place))
            except (ValueError, RuntimeError):  # fewer than two complete trials, or all alike
                continue
        found[name] = dict(shares)
    return found


def _value_at(place: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[place]


def as_study(sweep: Sweep) -> Any:
    """A study in memory as a person reads it: with shares instead of broken sticks, rates in percent.

    Trials keep their numbers; those that did not complete are there as failed ones.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: list[Any] = list(sweep.objectives.values())
    study = optuna.create_study(directions=directions)
    spaces = {key: _distribution(sweep, key) for key in sweep.keys}
    factors = [measure_of(name).factor for name in sweep.objectives]
    complete = {record.number: record for record in sweep.complete}
    for number in range(max(complete, default=-1) + 1):
        if (record := complete.get(number)) is None:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        chosen = {key: record.chosen[key] for key in sweep.keys if key in record.chosen}
        values = [value * factor for value, factor in zip(record.values, factors, strict=True)]
        distributions = {key: spaces[key] for key in chosen}
        study.add_trial(create_trial(values=values, params=chosen, distributions=distributions))
    return study


def _distribution(sweep: Sweep, key: str) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = [record.chosen[key] for record in sweep.records if key in record.chosen]
    if any(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    return FloatDistribution(float(min(values)), float(max(values)), log=key in sweep.logarithmic)


def _record(trial: FrozenTrial, trials: Trials) -> Record:
    known = trial.user_attrs
    return Record(
        number=trial.number,
        state=_state(trial, trials),
        values=tuple(trial.values) if trial.state.name == "COMPLETE" else (),
        chosen=known.get("chosen", {}),
        settings=known.get("settings", {}),
        metrics=known.get("metrics", {}),
        seconds=known.get("seconds"),
        curve=trial.intermediate_values,
        reason=known.get(REASON) or known.get(INFEASIBLE, ""),
    )


def _state(trial: FrozenTrial, trials: Trials) -> str:
    if trial.state.name == "RUNNING":
        if trial.user_attrs.get(PAUSED):
            return "paused"
        return "running" if trials.held(trial.number) else "interrupted"
    if INFEASIBLE in trial.user_attrs:
        return "infeasible"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def ready(sweep: Sweep, declared: Declaration, record: Record, folder: Path) -> str:
    """A trial as a declaration of its own: all parameters, with one connector and one mix.

    `lab train` takes it, and an ablation as its `base:`.
    """
    import yaml

    from lab.config import load_params, tree_of
    from lab.search.declaration import overrides

    params = load_params(folder / "params.yaml", overrides(record.settings))
    tree = tree_of(params)
    mix = next(iter(params.mixes))
    tree |= {"connectors": params.connectors[:1], "mixes": {mix: params.mixes[mix]}}
    tree["trainer"] = asdict(params.trainer)  # which decides about the last bits
    numbers = zip(sweep.objectives, record.values, strict=True)
    reached = ", ".join(f"{name} {value:.4g}" for name, value in numbers)
    drawn = "".join(f"#   {key}: {value}\n" for key, value in record.chosen.items())
    head = f"# Trial {record.number} of sweep {declared.study}: {reached}. It drew\n{drawn}"
    return head + yaml.safe_dump(tree, sort_keys=False)
