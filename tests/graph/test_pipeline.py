"""dvc.yaml names all that each stage reads, and DVC then does what a person expects of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from os.path import normpath
from pathlib import Path

import pytest
import yaml

from lab.config import load_params
from lab.graph.stages import code_of, parameters_of, stages_of

ROOT = Path(__file__).parents[2]

# Stands in for `lab stage`: writes what the stage declares, from what it reads.
STAND_IN = """
import hashlib, json, pathlib, sys
name, *instance = sys.argv[1:]
key = "/".join([name, "-".join(instance)]).rstrip("/")
with open("ran", "a") as file:
    file.write(key + "\\n")
content = hashlib.md5(pathlib.Path("params.yaml").read_bytes()).hexdigest()
out = pathlib.Path("output", key)
out.mkdir(parents=True, exist_ok=True)
(out / "node.json").write_text(json.dumps({"stage": name, "content": content}))
if name != "data":
    metrics = pathlib.Path("metrics", key.replace("compare", "comparison") + ".json")
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"content": content}))
"""


def test_each_stage_names_exactly_what_it_reads() -> None:
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    params = load_params(ROOT / "params.yaml")
    with Repo(str(ROOT)) as repo:
        stages = repo.stage.load_all(str(ROOT / "dvc.yaml"))
        declared = {
            stage.name: (
                {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params},
                {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)},
                {out.def_path for out in stage.outs},
            )
            for stage in stages
        }
    arms = [{"connector": c, "mix": m} for c in params.connectors for m in params.mixes]
    expected = 5 + len(params.connectors) + 2 * len(arms) + 1
    assert len(declared) == expected
    for name, (keys, deps, outs) in declared.items():
        group, _, instance = name.partition("@")
        given = dict(zip(("connector", "mix"), instance.split("-"), strict=False)) if instance else {}
        stage = stages_of(params)[group]
        folder = f"{group}/{instance}".rstrip("/")
        assert keys == set(parameters_of(params, stage, given)), name
        code = {normpath(dep) for dep in deps if not dep.startswith(("output/", "metrics/"))}
        assert code == set(code_of(params, stage, given)), name
        assert f"output/{folder}" in outs, name
        taken = {f"output/{text.format(**given)}" for text in stage.upstream}
        assert taken <= deps, name
        assert deps, "a stage without dependencies is never restored from the cache"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real dvc.yaml over two connectors and two mixes, run once with a stand-in for the work."""
    folder = tmp_path_factory.mktemp("pipeline")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("lab", "components"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "stand_in.py").write_text(STAND_IN)
    text = (ROOT / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text.replace("cmd: lab stage", f"cmd: {sys.executable} stand_in.py"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["connectors"] = ["linear", "q_former"]
    params["mixes"] = {"understanding": {"vqa": 1}, "generation": {"text_to_image": 1}}
    write(folder, params)
    run(folder)
    return folder


def write(folder: Path, params: dict[str, object]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder: Path) -> set[str]:
    """`dvc repro`; returns the stages that really ran."""
    (folder / "ran").write_text("")
    command = [sys.executable, "-m", "dvc", "repro", "-q"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return set((folder / "ran").read_text().split())


@pytest.mark.slow
def test_one_mix_reruns_its_arms_and_comes_back_from_the_cache(pipeline: Path) -> None:
    params = yaml.safe_load((pipeline / "params.yaml").read_text())
    metrics = pipeline / "metrics" / "evaluate" / "linear-generation.json"
    before = metrics.read_text()
    assert run(pipeline) == set()

    write(pipeline, {**params, "mixes": {**params["mixes"], "generation": {"text_to_image": 2}}})
    arms = {f"{stage}/{c}-generation" for stage in ("instruct", "evaluate") for c in params["connectors"]}
    assert run(pipeline) == arms | {"compare"}
    assert metrics.read_text() != before

    write(pipeline, params)
    assert run(pipeline) == set()
    assert metrics.read_text() == before
    status = [sys.executable, "-m", "dvc", "status", "--json"]
    assert json.loads(subprocess.run(status, cwd=pipeline, capture_output=True, check=True).stdout) == {}


@pytest.mark.slow
def test_another_word_trains_its_arms_and_nothing_else(pipeline: Path) -> None:
    params = yaml.safe_load((pipeline / "params.yaml").read_text())
    write(pipeline, {**params, "connectors": ["mlp", "q_former"]})
    arms = {f"{stage}/mlp-{mix}" for stage in ("instruct", "evaluate") for mix in params["mixes"]}
    assert run(pipeline) == arms | {"align/mlp", "compare"}
    write(pipeline, params)
    assert run(pipeline) <= {"compare"}


@pytest.mark.slow
def test_an_edited_part_reruns_its_users(pipeline: Path) -> None:
    file = pipeline / "components" / "connectors" / "q_former.py"
    text = file.read_text()
    file.write_text(text + "\n# edited\n")
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    status = json.loads(subprocess.run(command, cwd=pipeline, capture_output=True, check=True).stdout)
    file.write_text(text)
    assert {name for name in status if "compare" not in name} == {
        "align@q_former",
        *(
            f"{stage}@q_former-{mix}"
            for stage in ("instruct", "evaluate")
            for mix in ("understanding", "generation")
        ),
    }
