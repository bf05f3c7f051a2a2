"""`lab diff`: what differs between two runs, and where that began."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cli import main
from lab.errors import LabError
from lab.graph import node
from lab.graph.differences import difference
from lab.graph.differences.difference import Difference, compare
from lab.graph.differences.runs import Runs
from lab.graph.node import Node, content_of, identity_of, publish
from lab.reports.difference import conclusion, report

FILES = {
    "lab/training/fit.py": "one\ntwo\nthree\n",
    "components/connectors/linear.py": "linear\n",
    "components/connectors/q_former.py": "q_former\n",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with some code in git and an ablation, where the person is."""
    root = tmp_path / "checkout"
    (root / "experiments" / "ablations" / "trial").mkdir(parents=True)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", "lab", "components")
    git(root, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(node, "REPOSITORY", root)
    monkeypatch.setattr(difference, "REPOSITORY", root)
    monkeypatch.chdir(root)
    return root


def git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", str(root), *who, *words], check=True)


def trial(checkout: Path) -> Path:
    return checkout / "experiments" / "ablations" / "trial"


def ran(
    folder: Path, name: str, *inputs: str, code: tuple[str, ...] = (), wrote: str = "weights", **reads: Any
) -> Path:
    """A run of a node as the stages leave it; keywords are its parameters, `__` for a dot."""
    stage, _, label = name.partition("@")
    places = [one.replace("@", "/") for one in inputs]
    content = content_of(
        stage,
        label,
        {key.replace("__", "."): value for key, value in reads.items()},
        ["lab/training", *code],
        {place: identity_of(folder / "output" / place) for place in places},
    )
    output = folder / "output" / stage / label
    output.parent.mkdir(parents=True, exist_ok=True)
    with publish(Node(stage, label, content, output, folder / ".lab")) as out:
        (out / "model.safetensors").write_text(wrote)
    return output


def arm(
    folder: Path, seed: int = 0, connector: str = "linear", rate: float = 0.1, wrote: str = "weights"
) -> None:
    """data > encoder > align > instruct, of which the seed changes all but the data."""
    ran(folder, "data@all", seed=0, data={"train_scenes": 100})
    ran(folder, f"encoder@s{seed}", "data@all", seed=seed)
    label = f"{connector}-s{seed}"
    settings = {f"settings__connector__{connector}": {"dim": 8}}
    file = f"components/connectors/{connector}.py"
    ran(folder, f"align@{label}", "data@all", f"encoder@s{seed}", code=(file,), seed=seed, **settings)
    tuned: dict[str, Any] = {
        "stages__instruct": {"learning_rate": {"connector": rate}, "steps": 5},
        **settings,
    }
    ran(
        folder,
        f"instruct@{label}",
        "data@all",
        f"align@{label}",
        code=(file,),
        seed=seed,
        wrote=wrote,
        **tuned,
    )


def diff(checkout: Path, one: str, other: str) -> Difference:
    runs = Runs(checkout)
    return compare(runs.find(one), runs.find(other), runs)


def lines(found: Difference) -> Iterator[str]:
    yield from (" ".join(line.split()) for line in report(found))


# -- what differs --------------------------------------------------------------------------------------------


def test_a_run_is_identical_with_itself_and_with_its_copy(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm(trial(checkout))
    shutil.copytree(trial(checkout), trial(checkout).with_name("copy"))
    assert main(["diff", "trial/instruct@linear-s0", "copy/instruct@linear-s0"]) == 0
    assert capsys.readouterr().out.endswith("\nIdentical, in all that was recorded.\n")


def test_another_seed_is_found_where_it_first_changed_something(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm(trial(checkout), seed=0)
    arm(trial(checkout), seed=1)
    assert main(["diff", "instruct@linear-s0", "instruct@linear-s1"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == (
        "The first difference is upstream: encoder@s0 and encoder@s1 were trained with another seed (0, 1); "
        "align, instruct differ as well."
    )
    shown = [" ".join(line.split()) for line in said]
    assert "seed 0 -> 1" in shown
    assert "configuration the same, 4 settings" in shown
    assert "data 1 of 2 inputs differs" in shown


def test_another_setting_upstream_is_the_reason(checkout: Path) -> None:
    one, other = trial(checkout), trial(checkout).with_name("other")
    arm(one)
    ran(other, "data@all", seed=0, data={"train_scenes": 200})
    ran(other, "encoder@s0", "data@all", seed=0)
    found = diff(checkout, "trial/encoder@s0", "other/encoder@s0")
    assert conclusion(found) == (
        "The first difference is upstream: data@all ran with another configuration "
        "(data.train_scenes: 100, 200)."
    )
    assert not found.own
    assert "configuration the same, 0 settings" in lines(found)


def test_settings_are_called_as_a_person_sets_them(checkout: Path) -> None:
    folder = trial(checkout)
    ran(folder, "instruct@a", seed=0, settings__connector__linear={}, mixes__even={"vqa": 1, "caption": 1})
    ran(folder, "instruct@b", seed=0, settings__connector__q_former={"dim": 8}, mixes__most={"vqa": 3.5})
    found = diff(checkout, "instruct@a", "instruct@b")
    assert found.configuration is not None
    assert [(change.key, change.before, change.after) for change in found.configuration] == [
        ("connector", "linear", "q_former"),
        ("connector.dim", "-", "8"),
        ("mix", "even", "most"),
        ("mix.caption", "1", "-"),
        ("mix.vqa", "1", "3.5"),
    ]
    assert conclusion(found) == ("They differ in configuration (connector: linear, q_former; 4 more) alone.")


def test_changed_code_is_counted_in_lines_with_what_git_knows(checkout: Path) -> None:
    folder = trial(checkout)
    arm(folder)
    shutil.copytree(folder, folder.with_name("before"))
    fit = checkout / "lab" / "training" / "fit.py"
    fit.write_text("one\nTWO\nthree\nfour\n")
    git(checkout, "commit", "--quiet", "-am", "second")
    arm(folder)
    fit.write_text("something else")  # neither is the text of the checkout any more
    found = diff(checkout, "before/instruct@linear-s0", "trial/instruct@linear-s0")
    assert found.code is not None
    assert [(file.path, file.state, file.lines) for file in found.code] == [
        ("lab/training/fit.py", "changed", (2, 1))
    ]
    assert "lab/training/fit.py | 3 ++-" in lines(found)
    assert conclusion(found).startswith(
        "The first difference is upstream: data@all ran with other code (lab/training/fit.py)"
    )


def test_another_component_is_another_file(checkout: Path) -> None:
    arm(trial(checkout))
    arm(trial(checkout), connector="q_former")
    found = diff(checkout, "instruct@linear-s0", "instruct@q_former-s0")
    assert found.code is not None
    assert [(file.path, file.state, file.lines) for file in found.code] == [
        ("components/connectors/linear.py", "only in A", (0, 1)),
        ("components/connectors/q_former.py", "only in B", (1, 0)),
    ]
    assert "align@linear-s0 and align@q_former-s0" in conclusion(found)


def test_code_that_git_never_saw_is_said_to_differ(checkout: Path) -> None:
    folder = trial(checkout)
    (checkout / "lab" / "training" / "fit.py").write_text("never committed")
    arm(folder)
    shutil.copytree(folder, folder.with_name("before"))
    (checkout / "lab" / "training" / "fit.py").write_text(FILES["lab/training/fit.py"])
    arm(folder)
    found = diff(checkout, "before/data@all", "trial/data@all")
    assert "lab/training/fit.py | differs; git knows no text of one side" in lines(found)


def test_other_results_from_the_same_inputs_are_seen(checkout: Path) -> None:
    arm(trial(checkout))
    arm(trial(checkout).with_name("other"), wrote="other weights")
    found = diff(checkout, "trial/instruct@linear-s0", "other/instruct@linear-s0")
    assert not found.same
    assert found.results == ("model.safetensors",)
    assert conclusion(found) == (
        "They read the same and wrote something else, in an environment that was not recorded."
    )


def test_an_input_whose_output_is_gone_still_differs(checkout: Path) -> None:
    arm(trial(checkout), seed=0)
    arm(trial(checkout), seed=1)
    shutil.rmtree(trial(checkout) / "output" / "encoder")
    found = diff(checkout, "align@linear-s0", "align@linear-s1")
    assert conclusion(found).startswith(
        "The first difference is upstream: encoder was trained with something that was not recorded"
    )


# -- MLflow --------------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout with tracking switched on."""
    monkeypatch.setenv("LAB_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return checkout


def track(output: Path, **tags: str) -> str:
    """The MLflow run of an output; gives its id."""
    from lab.tracking import start_run

    with start_run(
        experiment="trial",
        arm=None,
        stage=output.parent.name,
        name="a run",
        identity=identity_of(output),
        params={"seed": 0, "stages.instruct.steps": 5},
    ) as run:
        run.tags({key.replace("__", "."): value for key, value in tags.items()})
    assert run.id is not None
    return run.id


def test_runs_of_mlflow_and_their_environment(tracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = trial(tracked), trial(tracked).with_name("other")
    arm(one)
    arm(other, wrote="other weights")
    first = track(one / "output" / "instruct" / "linear-s0", env__torch="2.13")
    second = track(other / "output" / "instruct" / "linear-s0", env__torch="2.12")
    assert main(["diff", first, second[:20]]) == 1
    said = capsys.readouterr().out
    assert "torch" in said
    assert "2.13 -> 2.12" in said
    assert said.splitlines()[-1].startswith("They read the same, in another environment (")
    # a run whose output is gone is known from MLflow alone
    shutil.rmtree(one / "output")
    shutil.rmtree(other / "output")
    arm(other, rate=0.5)
    third = "other/instruct@linear-s0"
    assert main(["diff", first, third]) == 1
    said = capsys.readouterr().out
    assert "its output is gone" in said
    assert "stages.instruct.learning_rate.connector" in said
    fourth = track(other / "output" / "instruct" / "linear-s0", env__torch="2.12")
    shutil.rmtree(other / "output")
    assert main(["diff", first, fourth]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "They differ; why was not recorded."
    with pytest.raises(LabError, match=r"no run 'ffffffff'"):
        Runs(tracked).find("ffffffff")


# -- names ---------------------------------------------------------------------------------------------------


def test_runs_are_found_by_all_their_names(checkout: Path) -> None:
    folder = trial(checkout)
    arm(folder, seed=0)
    arm(folder, seed=1)
    for seed in (0, 1):
        ran(folder, f"evaluate@linear-s{seed}", f"instruct@linear-s{seed}", seed=seed)
    labels = "{0: linear-s0, 1: linear-s1}"
    (folder / "compare.yaml").write_text(f"arms: {{linear: {{evaluate: {labels}}}}}\n")
    shutil.copytree(folder / "output", checkout / ".lab" / "arms" / "mine-1234" / "output")
    shutil.rmtree(checkout / ".lab" / "arms" / "mine-1234" / "output" / "evaluate" / "linear-s1")
    expected = {
        "trial/evaluate@linear-s0": "evaluate/linear-s0",
        "evaluate@linear-s1": "evaluate/linear-s1",
        "trial/linear": "evaluate/linear-s0",
        "linear-s1": "evaluate/linear-s1",
        "encoder@s1": "encoder/s1",
        "experiments/ablations/trial/output/align/linear-s0": "align/linear-s0",
    }
    runs = Runs(checkout)
    for name, place in expected.items():
        assert runs.find(name).folder == folder / "output" / place
    here = Runs(folder)
    assert here.find("instruct@linear-s0").folder == here.find("output/instruct/linear-s0").folder
    lone = checkout / ".lab" / "arms" / "mine-1234"
    assert runs.find("mine-1234").folder == runs.find(".lab/arms/mine-1234").folder
    assert runs.find("mine-1234").folder == lone / "output" / "evaluate" / "linear-s0"


def test_wrong_names_are_answered_in_one_line(checkout: Path) -> None:
    folder = trial(checkout)
    arm(folder)
    runs = Runs(checkout)
    with pytest.raises(
        LabError, match=r"no run 'instruct@linaer-s0' \(did you mean 'instruct@linear-s0'\?\)"
    ):
        runs.find("instruct@linaer-s0")
    (folder / "nodes" / "linear-s1").mkdir(parents=True)
    (folder / "nodes" / "linear-s1" / "instruct.yaml").touch()
    with pytest.raises(LabError, match=r"trial/instruct@linear-s1: has not run yet"):
        runs.find("trial/instruct@linear-s1")
    arm(folder.with_name("other"))
    with pytest.raises(LabError, match=r"'align@linear-s0' may be any of .*other/.*trial/"):
        runs.find("align@linear-s0")
    with pytest.raises(LabError, match=r"holds no node\.json"):
        runs.find("experiments")
    assert main(["diff", "nothing", "nothing"]) == 2
