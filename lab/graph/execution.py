"""What happens around each stage: its inputs, its MLflow run, its output and metrics."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.graph.claim import Claim, ClaimedError
from lab.graph.context import Context, flat, prepare_stage
from lab.graph.datasets import hashes_of
from lab.graph.hashing import hashed
from lab.graph.node import clear, damage, identity_of, publish, record_of, write_metrics
from lab.graph.stages import TRAINED
from lab.graph.work import WORK

if TYPE_CHECKING:
    from lab.tracking import Run


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
        params=flat(context.reads),
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
