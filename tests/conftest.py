"""What all tests share: nothing is recorded, cores are left to others, a tiny system, copies to test on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

os.environ.setdefault("LAB_TRACKING", "off")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("MPLBACKEND", "agg")

sys.path.insert(0, str(Path(__file__).parent / "servers"))
from debian import Unavailable
from postgres import Postgres, temporary_postgres
from slurm import Cluster, remove, temporary_cluster

if TYPE_CHECKING:
    from lab.models.arm import Arm
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.tasks import SceneTasks

ROOT = Path(__file__).parents[1]

TINY: dict[str, dict[str, Any]] = {
    "encoder": {"name": "patches", "patch_size": 8, "dim": 24},
    "connector": {"name": "linear"},
    "text_decoder": {"name": "llama", "dim": 32, "depth": 2, "num_heads": 2},
    "fusion": {"name": "sequence"},
    "visual_head": {"name": "regression"},
}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Commands that are called within a test leave no handler behind; Ctrl-C works as in a terminal.

    A shell has its jobs in the background ignore it, and their children would inherit that.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small built-in world on disk."""
    from lab.scenes.world import World, write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder, World(variants=2), {"train": 300, "validation": 60, "test": 60}, seed=0)
    return folder


@pytest.fixture(scope="session")
def tasks(world_folder: Path) -> SceneTasks:
    """Tasks of the training split, 300 scenes."""
    return _tasks(world_folder, "train")


@pytest.fixture(scope="session")
def held_out(world_folder: Path) -> SceneTasks:
    """Tasks of the test split, 60 scenes."""
    return _tasks(world_folder, "test")


def _tasks(folder: Path, split: Any) -> SceneTasks:
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import World, read_split

    return SceneTasks(read_split(folder, World(variants=2), split), turns=3)


@pytest.fixture(scope="session")
def tokenizer(tasks: SceneTasks) -> Tokenizer:
    """Of the built-in world."""
    from lab.samples.tokenizer import Tokenizer

    return Tokenizer.of_words(tasks.language.vocabulary())


@pytest.fixture
def new_arm(tokenizer: Tokenizer) -> Callable[..., Arm]:
    """Make a tiny arm with random weights; keywords replace the specification of a role."""
    import torch

    from lab.models.arm import Arm
    from lab.models.unified import UnifiedModel
    from lab.registry import build

    def make(seed: int = 0, targets: Any = "encoder", **specs: dict[str, Any]) -> Arm:
        torch.manual_seed(seed)
        chosen = {role: specs.get(role, spec) for role, spec in TINY.items()}
        encoder = build("encoder", chosen["encoder"], 32)
        decoder = build("text_decoder", chosen["text_decoder"], len(tokenizer))
        args: dict[str, tuple[int, ...]] = {"encoder": (32,), "text_decoder": (len(tokenizer),)}
        args["connector"] = (encoder.dim, decoder.dim, encoder.num_tokens)
        connector = build("connector", chosen["connector"], *args["connector"])
        args["fusion"] = (decoder.dim, len(decoder.layers), connector.num_tokens)
        fusion = build("fusion", chosen["fusion"], *args["fusion"])
        space = (encoder.dim, encoder.num_tokens)
        if targets == "connector":
            space = (decoder.dim, connector.num_tokens)
        args["visual_head"] = (decoder.dim, *space)
        head = build("visual_head", chosen["visual_head"], *args["visual_head"])
        model = UnifiedModel(encoder, connector, decoder, fusion, head, targets)
        return Arm(model, tokenizer, {role: (chosen[role], args[role]) for role in TINY})

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real server; `new_database()` is a test's own. LAB_REQUIRE_POSTGRES=1 makes its absence a failure."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(temporary_postgres())
        except Unavailable as error:
            if os.environ.get("LAB_REQUIRE_POSTGRES") == "1":
                pytest.fail(f"LAB_REQUIRE_POSTGRES=1, but {error}")
            pytest.skip(str(error))
        yield server


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real SLURM: three nodes, and two to be lost. LAB_REQUIRE_SLURM=1 makes its absence a failure."""
    made = temporary_cluster(nodes=3, spare=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(made.conf))
        try:
            made.start()
        except Unavailable as error:
            remove(made)
            if os.environ.get("LAB_REQUIRE_SLURM") == "1":
                pytest.fail(f"LAB_REQUIRE_SLURM=1, but {error}")
            pytest.skip(str(error))
        yield made
        remove(made)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store made once: its migrations take longer than any test."""
    from lab.tracking import store

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with store.locked_client():
            pass
    return folder / "mlflow.db"


# -- a pipeline so small that its stages run in a test's own process ---------------------------------------

SMOKE = ROOT / "experiments" / "ablations" / "smoke" / "params.yaml"


@pytest.fixture(scope="session")
def tiny_params() -> dict[str, Any]:
    """The smoke pipeline with fewer steps, another encoder, and two connectors."""
    params: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    params |= {"encoder": "patches", "connectors": ["linear", "mlp"]}
    params["data"] = {"train_scenes": 60, "validation_scenes": 40, "test_scenes": 40}
    params["judge"]["steps"] = 5
    for name, stage in params["stages"].items():
        if name != "evaluate":
            stage |= {"steps": 4, "log_every": 2, "checkpoint_every": 2, "warmup": 1, "batch_size": 8}
    params["stages"]["evaluate"] = dict.fromkeys(params["stages"]["evaluate"], 6)
    return params


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory, tiny_params: dict[str, Any]) -> Path:
    """The arm linear-understanding, from data to evaluation; to be read, not changed."""
    from lab.graph.execution import run_stage

    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("data", "judge", "encoder", "text_decoder", "image_decoder"):
            run_stage(stage)
        run_stage("align", "linear")
        for stage in ("instruct", "evaluate"):
            run_stage(stage, "linear", "understanding")
    return folder


# -- copies of the checkout to run real commands in ---------------------------------------------------------

Copy = Callable[[Path], Path]
Lab = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def copy_checkout() -> Copy:
    """Copies what git would take of the checkout, without tests and results, into a folder."""

    def copy(folder: Path) -> Path:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split(
            "\0"
        )
        for name in filter(None, names):
            if not name.startswith("tests/") and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for made in ("dvc.lock", "metrics", "output"):  # of whoever works in the checkout
            place = folder / made
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        return folder

    return copy


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """The environment in which a copy runs its own code."""

    def of(folder: Path, **more: str) -> dict[str, str]:
        left_out = ("MLFLOW_TRACKING_URI", "DVC_ROOT")
        kept = {key: value for key, value in os.environ.items() if key not in left_out}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"LAB_TRACKING": "on", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PATH": path}
        return {**kept, **own, **more}

    return of


@pytest.fixture(scope="session")
def lab(environment: Callable[..., dict[str, str]]) -> Lab:
    """Starts `lab` in a copy of the checkout."""

    def start(folder: Path, *words: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", *words],
            cwd=cwd or folder,
            env=environment(folder, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
