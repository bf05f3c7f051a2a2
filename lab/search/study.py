"""Runs a sweep: makes its study, has workers try its trials, shows what came of it; called again, continues.

A study's trials are those of one declaration on one params.yaml: both are part of its name. Trial k draws
from a generator seeded with k, so an interrupted study of one worker continues as if nothing had happened.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.search import results
from lab.search.declaration import Declaration, read
from lab.search.pool import Pool
from lab.search.storage import default_url, moved_from, open_storage, shown, studies
from lab.search.trials import Trials
from lab.search.worker import Objective, Worker, training
from lab.tracking import arm_run
from lab.tracking.store import enabled, store_lock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_READY = "ready"  # of a study that is whole: it was made, or moved, to the end


def run(
    declaration: str,
    trials: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    on: str = "local",
    objective: Objective | None = None,
) -> None:
    """Runs or continues a sweep in the folder of a params.yaml.

    Args:
        declaration: the YAML file.
        trials: finished trials in all, instead of the declaration's.
        workers: processes that work on it at once.
        storage: URL, instead of the declaration's.
        on: "local", or "slurm" for jobs of a cluster.
        objective: what a trial does; trains and evaluates if not stated.

    Raises:
        LabError: mistakes in the declaration, all at once, or trials that fail one after another.
        KeyboardInterrupt: a signal asked to leave; the same command goes on.
    """
    sweep = read(Path(declaration), Path.cwd())
    wanted = sweep.trials if trials is None else trials
    for name, count in (("trials", wanted), ("workers", workers)):
        if count < 1:
            raise LabError(f"--{name}: at least 1 is expected, not {count}")
    if sweep.sampler == "grid" and wanted > sweep.trials:
        raise LabError(f"--trials: the grid has no more than {sweep.trials} points to try, not {wanted}")
    several = workers > 1 or on == "slurm"
    url = storage or sweep.storage or default_url(sweep.study, several)
    if several and url.startswith("sqlite"):
        raise LabError(f"storage {url}: SQLite serves one worker; use journal:///FILE or postgresql://...")
    shared = prepare(sweep, url, wanted)
    done = len(shared.finished())
    print(f"study {sweep.study}: {min(done, wanted)} of {wanted} trials done, in {shown(url)}", flush=True)
    if done < wanted:
        if on == "slurm":
            from lab.search.cluster import work_on_slurm

            work_on_slurm(shared, url, workers)
        elif workers == 1:
            Worker(shared, objective or training()).work()
        else:
            Pool(sweep, url, wanted, objective).work(workers)
    conclude(shared, Path.cwd())


def join(declaration: str, storage: str | None = None) -> None:
    """Works on a study that was begun, as one more worker, until all its trials are finished.

    Args:
        declaration: the YAML file.
        storage: as for `run`.

    Raises:
        LabError: it was never begun; further as for `run`.
    """
    sweep = read(Path(declaration), Path.cwd())
    url = storage or sweep.storage or default_url(sweep.study, several=True)
    if sweep.study not in studies(url):
        raise LabError(
            f"{declaration}: no study in {shown(url)} to join; `lab sweep {declaration}` begins it"
        )
    opened = open_storage(url)
    known = opened.get_study_user_attrs(opened.get_study_id_from_name(sweep.study))
    Worker(Trials(sweep, opened, known["trials"]), training()).work()


def prepare(sweep: Declaration, url: str, wanted: int) -> Trials:
    """Makes and migrates all that workers will write to, before the first of them starts.

    Args:
        sweep: the declaration.
        url: of the storage.
        wanted: trials that are to finish.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if enabled():
        with arm_run(sweep.experiment, f"sweep {sweep.study}") as parent:  # makes MLflow's store as well
            parent.params({"objectives": sweep.objectives, "sampler": sweep.sampler, "pruner": sweep.pruner})
    with store_lock():  # two processes that create tables at once would both fail
        storage = open_storage(url, create=True)
        _create(sweep, url, storage)
    trials = Trials(sweep, storage, wanted)
    storage.set_study_user_attr(storage.get_study_id_from_name(sweep.study), "trials", wanted)
    trials.fill()
    trials.forgive()
    return trials


def _create(sweep: Declaration, url: str, storage: BaseStorage) -> None:
    """Makes the study, or moves it here from where one worker has begun it; half a study is made anew."""
    import optuna

    name, names = sweep.study, [one.study_name for one in optuna.get_all_study_summaries(storage)]
    if name in names:
        if _READY in optuna.load_study(study_name=name, storage=storage).user_attrs:
            return
        optuna.delete_study(study_name=name, storage=storage)
    if earlier := moved_from(name, url):
        optuna.copy_study(
            from_study_name=name, from_storage=open_storage(earlier), to_storage=storage, to_study_name=name
        )
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        directions: list[Any] = list(sweep.objectives.values())
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Optuna calls experimental
            study.set_metric_names(list(sweep.objectives))  # for its dashboard
    study.set_user_attr(_READY, True)


def conclude(trials: Trials, folder: Path) -> None:
    """Table, plots and the best trials as declarations, on disk and in MLflow.

    Args:
        trials: of a study, all finished.
        folder: of the pipeline.

    Raises:
        LabError: no trial completed.
    """
    from lab.reports.sweep import print_sweep, write_sweep

    sweep, declared = results.of_trials(trials), trials.sweep
    print_sweep(sweep)
    if not sweep.complete:
        raise LabError(f"sweep {declared.name}: no trial completed; see the reasons above")
    output = folder / "output" / "sweeps" / declared.name
    written = write_sweep(sweep, output)
    for old in [*output.glob("best.yaml"), *output.glob("front-*.yaml")]:
        old.unlink()
    alone = len(declared.objectives) == 1
    for record in sweep.best:
        path = output / ("best.yaml" if alone else f"front-{record.number}.yaml")
        path.write_text(results.ready(sweep, declared, record, folder), encoding="utf-8")
        written.append(path)
        print(f"Trial {record.number} as a declaration: lab train {path.relative_to(folder)}")
    print(f"Plots: {(output / 'sweep.html').relative_to(folder)}")
    with arm_run(declared.experiment, f"sweep {declared.study}") as parent:
        first = sweep.best[0]
        parent.metrics({name: round(value, 4) for name, value in first.metrics.items()} if alone else {})
        parent.metrics({"sweep/complete": len(sweep.complete), "sweep/best": len(sweep.best)})
        for path in written:
            parent.artifact(path, {".png": "plots", ".html": "plots"}.get(path.suffix))
