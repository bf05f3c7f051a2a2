"""Stages: what they publish, what their identity follows from, and what they say when they cannot run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import check_params
from lab.errors import LabError
from lab.graph import node as nodes
from lab.graph.context import prepare
from lab.graph.execution import run_stage
from lab.graph.node import Node, content_of, publish, record_of
from lab.graph.work import WORK


@pytest.fixture
def folder(tmp_path: Path, tiny_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of which nothing has run."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(*words: str) -> str:
    with pytest.raises(LabError) as caught:
        run_stage(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_stage_is_named(folder: Path) -> None:
    assert "no stage 'instrct' (did you mean 'instruct'?); have align, compare" in complaint("instrct")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("align",), "stage align: takes connector"),
        (("data", "linear"), "stage data: takes no instance, got ['linear']"),
        (("instruct", "linear"), "stage instruct: takes connector and mix, got ['linear']"),
        (("evaluate", "linear", "understanding", "more"), "stage evaluate: takes connector and mix"),
        (("align", "linaer"), "stage align: no connector 'linaer' in params.yaml (did you mean 'linear'?)"),
        (("align", "q_former"), "stage align: no connector 'q_former' in params.yaml; have linear, mlp"),
        (
            ("instruct", "linear", "genration"),
            "no mix 'genration' in params.yaml (did you mean 'generation'?)",
        ),
    ],
)
def test_a_wrong_instance_is_named(folder: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in complaint(*words)


@pytest.mark.parametrize(
    "words",
    [("judge",), ("encoder",), ("image_decoder",), ("align", "linear"), ("evaluate", "linear", "generation")],
    ids=" ".join,
)
def test_what_is_missing_upstream_is_named(folder: Path, words: tuple[str, ...]) -> None:
    text = complaint(*words)
    assert "output/" in text
    assert "the output of an earlier stage is missing; run `dvc repro` first" in text
    assert not (folder / "output").exists()


def test_an_impossible_world_is_named(folder: Path, tiny_params: dict[str, Any]) -> None:
    world = {**tiny_params["world"], "grid": 5}
    (folder / "params.yaml").write_text(yaml.safe_dump({**tiny_params, "world": world}))
    assert "world: 5 cells" in complaint("data")


def test_every_stage_publishes_output_record_and_metrics(tiny_pipeline: Path) -> None:
    arm = "linear-understanding"
    places = {
        "data",
        "judge",
        "encoder",
        "text_decoder",
        "image_decoder",
        "align/linear",
        f"instruct/{arm}",
        f"evaluate/{arm}",
    }
    for place in places:
        record = record_of(tiny_pipeline / "output" / place)
        stage, _, instance = place.partition("/")
        assert (record["stage"], record["instance"]) == (stage, instance)
        metrics = tiny_pipeline / "metrics" / f"{place}.json"
        assert metrics.exists() == (place != "data")
    identities = {record_of(tiny_pipeline / "output" / place)["identity"] for place in places}
    assert len(identities) == len(places)
    found = {
        path.parent.relative_to(tiny_pipeline / "output").as_posix()
        for path in tiny_pipeline.rglob("node.json")
    }
    assert found == places
    assert not list(tiny_pipeline.rglob("*.partial"))
    assert not list((tiny_pipeline / ".lab" / "work").glob("*"))


def test_a_second_run_publishes_the_same_bytes(tiny_pipeline: Path, folder: Path) -> None:
    """DVC compares outputs by content; times and run ids in them would make every run a change."""
    for stage in ("data", "text_decoder"):
        run_stage(stage)
        expected = tiny_pipeline / "output" / stage
        files = {file.relative_to(expected) for file in expected.rglob("*") if file.is_file()}
        assert files
        for file in files:
            assert (folder / "output" / stage / file).read_bytes() == (expected / file).read_bytes(), file


def test_a_failed_stage_leaves_what_was_there(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, folder)
    monkeypatch.chdir(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["judge"]["steps"] += 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    before = {path: path.read_bytes() for path in (folder / "output" / "judge").iterdir()}

    def fails(context: Any) -> dict[str, Any]:
        (context.out / "half").write_text("half")
        raise LabError("no")

    monkeypatch.setitem(WORK, "judge", fails)
    assert complaint("judge") == "no"
    assert {path: path.read_bytes() for path in (folder / "output" / "judge").iterdir()} == before
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run_stage("judge")  # what the failure left is in nobody's way
    assert {path.name for path in (folder / "output" / "judge").iterdir()} == {path.name for path in before}


def test_what_was_published_stands_unless_a_byte_of_it_changed(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage that was killed after its end, before DVC knew of it, does not run again."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, folder)
    monkeypatch.chdir(folder)
    expected = json.loads((folder / "metrics" / "judge.json").read_text())
    assert run_stage("judge") == expected
    assert "judge: done before" in capsys.readouterr().out
    weights = folder / "output" / "judge" / "judge.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    shutil.rmtree(folder / "output" / "image_decoder")
    assert "output/judge/judge.safetensors: damaged" in complaint("image_decoder")
    run_stage("judge")
    assert "done before" not in capsys.readouterr().out
    assert weights.read_bytes() != bytes(content)


def test_publishing_is_all_or_nothing(tmp_path: Path) -> None:
    content = content_of("align", "linear", {"seed": 0}, [], {"data": "0" * 16})
    node = Node("align", "linear", content, tmp_path / "output" / "align" / "linear", tmp_path / "work")

    def write(text: str, fail: bool = False) -> None:
        with publish(node) as out:
            (out / "file").write_text(text)
            if fail:
                raise KeyboardInterrupt

    write("first")
    with pytest.raises(KeyboardInterrupt):
        write("second", fail=True)
    assert (node.output / "file").read_text() == "first"
    write("third")
    assert (node.output / "file").read_text() == "third"
    assert json.loads((node.output / "node.json").read_text()) == {
        "identity": node.identity,
        "stage": "align",
        "instance": "linear",
        "parameters": {"seed": 0},
        "code": {},
        "upstream": {"data": "0" * 16},
        "outputs": {"file": "dd5c8bf51558ffcbe5007071908e9524"},
    }


# -- identity ------------------------------------------------------------------------------------------------


def identity(folder: Path, tree: dict[str, Any], *words: str) -> str:
    return prepare(folder, check_params(tree), *words).node.identity


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**tree, head: changed(tree[head], rest, value) if rest else value}


READ_BY = {
    "world.variants": (3, {"data", "encoder", "align", "instruct"}),
    "data.train_scenes": (61, {"data"}),
    "stages.encoder.steps": (5, {"encoder"}),
    "settings.connector.mlp.hidden_layers": (3, set()),  # of the other connector
    "settings.encoder.vit.depth": (2, set()),  # of another encoder
    "stages.align.mix.caption": (9, {"align"}),
    "mixes.generation.edit": (9, set()),  # the mix of the other arm
    "mixes.understanding.vqa": (9, {"instruct"}),
    "stages.instruct.steps": (5, {"instruct"}),
    "name": ("other", set()),
    "threads": (2, set()),
}


@pytest.mark.parametrize("key", READ_BY)
def test_identity_follows_from_what_is_read(
    tiny_pipeline: Path, tiny_params: dict[str, Any], key: str
) -> None:
    """The parameters of a stage alone; what changes upstream comes with the upstream outputs."""
    value, readers = READ_BY[key]
    stages = {"data": (), "encoder": (), "align": ("linear",), "instruct": ("linear", "understanding")}
    for stage, words in stages.items():
        before = identity(tiny_pipeline, tiny_params, stage, *words)
        assert before == record_of(tiny_pipeline / "output" / stage / "-".join(words))["identity"]
        after = identity(tiny_pipeline, changed(tiny_params, key, value), stage, *words)
        assert (before != after) == (stage in readers), stage


def test_identity_follows_from_code_and_upstream(
    tiny_pipeline: Path, tiny_params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, code = tmp_path / "pipeline", tmp_path / "code"
    shutil.copytree(tiny_pipeline, folder)
    for name in ("lab", "components"):
        shutil.copytree(nodes.REPOSITORY / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(nodes, "REPOSITORY", code)
    arms = {word: identity(folder, tiny_params, "align", word) for word in ("linear", "mlp")}

    part = code / "components" / "connectors" / "linear.py"
    part.write_text(part.read_text() + "\n")
    assert identity(folder, tiny_params, "align", "linear") != arms["linear"]
    assert identity(folder, tiny_params, "align", "mlp") == arms["mlp"]

    record = folder / "output" / "encoder" / "node.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "identity": "another"}))
    assert identity(folder, tiny_params, "align", "mlp") != arms["mlp"]
