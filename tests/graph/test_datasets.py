"""Registered data sets: imported whole or not at all, and part of what a stage that reads them is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import DataSetParams, check_params, load_params
from lab.errors import LabError
from lab.graph.ablation import read_ablation
from lab.graph.compile import compile_graph
from lab.graph.compiled import files_of
from lab.graph.context import prepare
from lab.graph.datasets import check_declared, hash_of, locate
from lab.graph.dependencies import tasks_of
from lab.graph.importing import import_data, inspected, register
from lab.graph.leakage import check_leakage
from lab.graph.stages import data_sets_of
from tests.samples.readers.conftest import encoded, put, talk

ROOT = Path(__file__).parents[2]


def photos(root: Path, count: int = 30, bad: int = 0) -> Path:
    for number in range(count):
        put(root, f"images/{number}.png", number)
    records = [talk(n, "<image>\nWhat?", f"Number {n}.", image=f"{n}.png") for n in range(count)]
    records += [talk(count + n, "<image>\nWhat?", "Gone.", image=f"gone-{n}.png") for n in range(bad)]
    put(root, "photos.json", records)
    return root


@pytest.fixture
def folder(tmp_path: Path, tiny_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of which nothing has run, outside any DVC repository."""
    place = tmp_path / "pipeline"
    place.mkdir()
    (place / "params.yaml").write_text(yaml.safe_dump(tiny_params, sort_keys=False))
    monkeypatch.chdir(place)
    return place


# -- import --------------------------------------------------------------------------------------------------


def test_an_entry_changes_no_other_line_of_params(tmp_path: Path) -> None:
    before = (ROOT / "params.yaml").read_text()
    file = tmp_path / "params.yaml"
    file.write_text(before)
    entry = DataSetParams("datasets/photos", "llava", "skip", {"validation": 0.1, "test": 0.1})
    os.replace(register(file, "photos", entry), file)
    after = file.read_text()
    kept = [line for line in before.splitlines() if not line.startswith("datasets:")]
    assert [line for line in after.splitlines() if line in kept] == kept
    assert load_params(file).datasets == {"photos": entry}
    os.replace(register(file, "more", DataSetParams("datasets/more", "coco", fit="anyres")), file)
    assert list(load_params(file).datasets) == ["photos", "more"]


@pytest.mark.parametrize("way", ["clone", "copy", "link"])
def test_an_imported_set_has_its_place_and_its_entry(folder: Path, tmp_path: Path, way: Any) -> None:
    source = photos(tmp_path / "given")
    data = import_data(str(source), "photos", {}, way)
    assert len(data) == 30
    place = folder / "datasets" / "photos"
    assert place.is_symlink() == (way == "link")
    assert (place / "images" / "7.png").read_bytes() == encoded(7)
    entry = load_params(folder / "params.yaml").datasets["photos"]
    assert entry.splits == {"validation": 0.1, "test": 0.1}
    with pytest.raises(LabError, match="data set 'photos': there is one already"):
        import_data(str(source), "photos", {})


def test_bad_records_stop_an_import_and_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    before = (folder / "params.yaml").read_text()
    source = photos(tmp_path / "given", bad=2)
    with pytest.raises(
        LabError, match=r"2 bad records of 32: photos\.json, line \d+, record 31: missing file"
    ):
        import_data(str(source), "photos", {})
    assert (folder / "params.yaml").read_text() == before
    assert not list((folder / "datasets").iterdir())
    data = import_data(str(source), "photos", {"policy": "quarantine"})
    assert (len(data), data.skipped) == (30, 2)
    assert len((folder / "quarantine" / "photos" / "records.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "stated", "message"),
    [
        ("vqa", {}, "--as vqa: expected a name of a-z, 0-9 and _ that is no task"),
        ("../up", {}, "expected a name"),
        ("photos", {"fit": "squeeze"}, "datasets.photos.fit: no 'squeeze'"),
        ("photos", {"format": "lava"}, r"format: no 'lava' \(did you mean 'llava'\?\)"),
        (
            "photos",
            {"splits": {"tst": 0.1}},
            r"datasets.photos.splits: no split 'tst' \(did you mean 'test'\?\)",
        ),
        ("photos", {"splits": {"test": 1.5}}, "expected shares from 0 to 1"),
    ],
)
def test_a_wrong_entry_is_refused(
    folder: Path, tmp_path: Path, name: str, stated: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabError, match=message):
        import_data(str(photos(tmp_path / "given", 3)), name, stated)
    assert not list((folder / "datasets").glob("*"))


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    source = photos(tmp_path / "given", 3)
    put(tmp_path, "secret.txt", "secret")
    (source / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(LabError, match=r"notes\.txt: a link that leads out of"):
        import_data(str(source), "photos", {})


def test_what_is_neither_here_nor_on_the_hub_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="no such folder, and no name of a data set on the hub"):
        import_data("./nowhere", "photos", {})
    with pytest.raises(LabError, match="nobody/nothing-of-the-kind: no such folder, nor could it be fetched"):
        import_data("nobody/nothing-of-the-kind", "photos", {})


def test_inspecting_writes_nothing_beside_the_data(folder: Path, tmp_path: Path) -> None:
    source = photos(tmp_path / "given")
    before = sorted(tmp_path.glob("*")), sorted(source.rglob("*"))
    assert len(inspected(str(source), {})) == 30
    assert (sorted(tmp_path.glob("*")), sorted(source.rglob("*"))) == before


# -- stages --------------------------------------------------------------------------------------------------


@pytest.fixture
def params(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Parameters whose generation mix names a data set that is there."""
    import_data(str(photos(tmp_path / "given")), "photos", {})
    tree: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    tree["mixes"]["generation"]["photos"] = 3.0
    return tree


def test_stages_that_see_a_data_set_or_spell_its_words_read_it(params: dict[str, Any]) -> None:
    checked = check_params(params)
    given = {"connector": "linear", "mix": "generation"}
    reading = {name: data_sets_of(checked, name, given) for name in checked.recipe}
    assert {name for name, sets in reading.items() if sets} == {"text_decoder", "instruct"}
    assert data_sets_of(checked, "instruct", {**given, "mix": "understanding"}) == []


def test_changed_data_make_another_stage(params: dict[str, Any], tiny_pipeline: Path, folder: Path) -> None:
    for name in ("output", "metrics"):
        shutil.copytree(tiny_pipeline / name, folder / name)

    def identities() -> list[str]:
        return [
            prepare(folder, check_params(params), "instruct", "linear", mix).node.identity
            for mix in ("understanding", "generation")
        ]

    before = identities()
    assert identities() == before
    put(folder / "datasets" / "photos", "images/3.png", 99)
    after = identities()
    assert (after[0], after[1] != before[1]) == (before[0], True)
    params["datasets"]["photos"]["fit"] = "crop"
    assert identities()[1] not in (before[1], after[1])


def test_a_mix_that_names_an_unknown_set_is_refused(params: dict[str, Any]) -> None:
    params["mixes"]["generation"]["photo"] = 1.0
    with pytest.raises(LabError, match=r"mixes.generation: no task 'photo' \(did you mean 'photos'\?\)"):
        check_params(params)


def test_a_set_that_has_gone_is_said_with_what_brings_it_back(params: dict[str, Any], folder: Path) -> None:
    shutil.rmtree(folder / "datasets" / "photos")
    with pytest.raises(
        LabError, match=r"no such folder in .* or above; `dvc pull datasets/photos` fetches it"
    ):
        locate(check_params(params).datasets["photos"], folder)


def test_a_stage_of_dvc_yaml_must_depend_on_the_sets_that_it_reads(
    params: dict[str, Any], folder: Path
) -> None:
    checked, given = check_params(params), {"connector": "linear", "mix": "generation"}
    stage = {"params": ["seed"], "deps": ["${root}/lab/samples"], "cmd": "lab stage instruct"}
    for key, line in (("params", "datasets.photos"), ("deps", "datasets/photos")):
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"instruct": stage}}))
        with pytest.raises(LabError, match=f"add `- {line}` to its {key}"):
            check_declared(folder, checked, "instruct", given)
        stage[key].append(line)  # type: ignore[attr-defined]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"instruct": stage}}))
    check_declared(folder, checked, "instruct", given)
    check_declared(folder, checked, "instruct", {**given, "mix": "understanding"})


def test_the_arms_of_an_ablation_depend_on_their_sets_and_share_one_vocabulary(
    params: dict[str, Any], folder: Path
) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    declared = folder / "experiments" / "ablations" / "with_photos"
    declared.mkdir(parents=True)
    levels = {"none": {"mix": {"caption": 1}}, "some": {"mix": {"caption": 1, "photos": 1}}}
    tree = {"base": "params.yaml", "factors": {"photos": levels}, "seeds": [0]}
    (declared / "ablation.yaml").write_text(yaml.safe_dump(tree))
    graph = compile_graph(read_ablation(declared / "ablation.yaml"))
    reading = {name for name, task in tasks_of(graph).items() if "../../../datasets/photos" in task.deps}
    assert len([node for node in graph.nodes.values() if node.stage == "text_decoder"]) == 1
    assert reading == {
        name
        for name, node in graph.nodes.items()
        if node.stage == "text_decoder" or (node.stage == "instruct" and "some" in node.label)
    }
    assert len(reading) == 2
    assert "- ../../../datasets/photos" in "".join(files_of(graph).values())


# -- leakage -------------------------------------------------------------------------------------------------


def test_leaks_between_sets_are_found_with_their_places(folder: Path, tmp_path: Path) -> None:
    import_data(str(photos(tmp_path / "given")), "photos", {"splits": {"validation": 0.01, "test": 0.01}})
    root = tmp_path / "other"
    put(root, "old.png", 5)
    put(root, "new.png", 1005)
    asked = ("<image>\nWhat?", "Number.")
    put(root, "bench_test.json", [talk(n, *asked, image=f) for n, f in enumerate(["new.png", "old.png"])])
    import_data(str(root), "bench", {"splits": "own"})
    found, compared = check_leakage([])
    assert "bench/test: 2 images" in compared
    assert [(one.kind, one.held_out.partition(" ")[0]) for one in found] == [
        ("equal image", "bench/test"),
        ("equal question", "bench/test"),
    ]
    assert "record 2" in found[0].held_out
    assert "record 6" in found[0].training
    assert check_leakage(["photos"])[0] == []


def test_the_hash_of_a_set_is_the_one_that_dvc_records(folder: Path, tmp_path: Path) -> None:
    from lab.graph.hashing import hashed

    source = photos(tmp_path / "given", 3)
    assert hash_of(source, folder / ".lab") == hashed(source).md5
