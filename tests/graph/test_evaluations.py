"""`lab eval`: measured once for given weights and data, whatever they are called; one table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.cli import main
from lab.errors import LabError
from lab.evaluation.drawing import agreement, diversity, prompt_fidelity, reconstruction
from lab.evaluation.protocols import PROTOCOLS
from lab.evaluation.subject import Asking, Subject
from lab.graph.evaluations import Material, evaluate_run
from lab.models.arm import Arm
from lab.models.contrastive import ContrastiveModel, load_contrastive, save_contrastive
from lab.models.store import save_component
from lab.registry import build
from lab.samples.regions import RegionCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.judge import Judge
from lab.scenes.tasks import SceneTasks

DECODER = {"name": "transformer", "dim": 32}
FEW = Asking(samples=6)


@pytest.fixture
def pipeline(
    new_arm: Callable[..., Arm], world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder as a pipeline leaves it, with an arm "tiny-mix" of random weights."""
    output = tmp_path / "output"
    shutil.copytree(world_folder, output / "data")
    node(output / "data", "d1", parameters={"world": {"image_size": 32, "grid": 2, "variants": 2}})
    arm = new_arm()
    arm.save(output / "instruct" / "tiny-mix")
    node(output / "instruct" / "tiny-mix", "i1", {"data": "d1", "encoder": "e1"})
    torch.manual_seed(0)
    save_component(
        output / "image_decoder",
        "image_decoder",
        DECODER,
        (24, 16, 32),
        build("image_decoder", DECODER, 24, 16, 32),
    )
    (output / "judge").mkdir()
    judge = Judge(Material(output / "instruct" / "tiny-mix").world)
    save_file(judge.state_dict(), output / "judge" / "judge.safetensors")
    node(output / "judge", "j1", {"data": "d1"})
    encoder = {"name": "vit", "patch_size": 8, "dim": 24, "depth": 1, "num_heads": 2}
    contrastive = ContrastiveModel(build("encoder", encoder, 32), len(arm.tokenizer))
    save_component(output / "encoder", "encoder", encoder, (32,), contrastive.encoder)  # type: ignore[arg-type]
    save_contrastive(output / "encoder", contrastive)
    node(output / "encoder", "e1", {"data": "d1"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def node(folder: Path, identity: str, upstream: dict[str, str] | None = None, **more: object) -> None:
    record = {"identity": identity, "upstream": upstream or {}, **more}
    (folder / "node.json").write_text(json.dumps(record))


def silent(line: str) -> None:
    """Nobody listens."""


def test_one_and_four_shots_print_the_protocols_table(
    pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "tiny-mix", "--protocol", "vqa", "caption", "--shots", "1", "4", "--samples", "3"]
    assert main(command) == 0
    table = capsys.readouterr().out.partition("metric")[2].splitlines()
    assert table[0].split() == ["1", "shot", "4", "shots"]
    for row in ("vqa/accuracy (random shots)", "vqa/accuracy/add (matched shots)", "caption/cider_d"):
        (found,) = [line for line in table if line.startswith(f"{row}  ")]
        assert found.count("[") == 2
    files = list((pipeline / ".lab" / "evaluations").glob("*.json"))
    assert len(files) == 6  # vqa with two choices of shots, caption with one; each with 1 and 4
    assert main(command) == 0
    assert capsys.readouterr().out.count("measured before") == 6


def test_all_protocols_in_one_table(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny-mix", "--samples", "4"]) == 0
    out = capsys.readouterr().out
    measured = {line.partition("/")[0] for line in out.splitlines() if "[" in line}
    assert set(PROTOCOLS) - {"grounding"} <= measured  # a world without location words has no boxes
    assert "LPIPS" in out  # said, not guessed


def test_an_equal_key_is_never_measured_again(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under another name, nor in another place; but with one weight changed."""
    (first,) = evaluate_run("tiny-mix", ["caption"], [0], FEW, silent)
    arms = pipeline / "output" / "instruct"
    shutil.copytree(arms / "tiny-mix", arms / "copied-mix")
    node(arms / "copied-mix", "of-another-history", {"data": "d1"})

    def never(self: Material) -> Subject:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(Material, "subject", property(never))
        assert evaluate_run("copied-mix", ["caption"], [0], FEW, silent) == [first]
    weights = arms / "copied-mix" / "connector" / "model.safetensors"
    state = load_file(weights)
    state[next(iter(state))] += 1
    save_file(state, weights)
    (second,) = evaluate_run("copied-mix", ["caption"], [0], FEW, silent)
    assert second["key"] != first["key"]
    (third,) = evaluate_run("tiny-mix", ["caption"], [0], Asking(samples=5), silent)
    assert third["key"] != first["key"]


def test_other_data_is_another_key(pipeline: Path) -> None:
    (first,) = evaluate_run("tiny-mix", ["text"], [0], FEW, silent)
    data = pipeline / "output" / "data"
    shutil.copy(data / "scenes-validation.npz", data / "scenes-test.npz")
    (second,) = evaluate_run("tiny-mix", ["text"], [0], FEW, silent)
    assert first["key"] != second["key"]
    assert first["figures"] != second["figures"]


def test_a_torn_result_is_measured_again(pipeline: Path) -> None:
    (first,) = evaluate_run("tiny-mix", ["text"], [0], FEW, silent)
    file = pipeline / ".lab" / "evaluations" / f"{first['key']}.json"
    file.write_text(file.read_text()[:50])
    (second,) = evaluate_run("tiny-mix", ["text"], [0], FEW, silent)
    assert second["figures"] == first["figures"]
    assert json.loads(file.read_text()) == second


def test_mistakes_are_named(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny-mix", "--protocol", "pop"]) == 2
    assert "no protocol 'pop' (did you mean 'pope'?)" in capsys.readouterr().err
    assert main(["eval", "tiny-mi"]) == 2
    assert "no trained arm 'tiny-mi' (did you mean 'tiny-mix'?)" in capsys.readouterr().err
    assert main(["eval", "tiny-mix", "--samples", "0"]) == 2
    assert "--samples must be at least 1" in capsys.readouterr().err
    assert main(["eval", "tiny-mix", "--clip", "nowhere", "--protocol", "clip", "--samples", "2"]) == 2
    assert "'nowhere': expected own, or a folder" in capsys.readouterr().err


def test_what_an_arm_cannot_do_is_left_out_unless_it_was_asked_for(pipeline: Path) -> None:
    shutil.rmtree(pipeline / "output" / "image_decoder")
    (pipeline / "output" / "encoder" / "contrastive.safetensors").unlink()
    said: list[str] = []
    results = evaluate_run("tiny-mix", [], [0], Asking(samples=2), said.append)
    measured = {result["protocol"] for result in results}
    assert measured == {"vqa", "caption", "by_example", "pope", "grounding", "text"}
    assert "edit: left out: this arm answers questions, but draws nothing" in said
    with pytest.raises(LabError, match="draws nothing"):
        evaluate_run("tiny-mix", ["fidelity"], [0], FEW, silent)


def test_the_judge_is_that_of_the_arms_data(pipeline: Path) -> None:
    """In an ablation several may be there; one that was trained on another world is no judge."""
    judge = pipeline / "output" / "judge"
    shutil.copytree(judge, pipeline / "kept")
    shutil.rmtree(judge)
    for label, data in (("a", "d0"), ("b", "d1")):
        shutil.copytree(pipeline / "kept", judge / label)
        node(judge / label, f"j-{label}", {"data/all": data})
    arm = Material(pipeline / "output" / "instruct" / "tiny-mix")
    assert arm.part("judge") == judge / "b" / "judge.safetensors"
    node(judge / "b", "j-b", {"data/all": "d2"})
    assert arm.part("judge") is None


def test_drawings_do_not_depend_on_the_batch(pipeline: Path) -> None:
    subject = Material(pipeline / "output" / "instruct" / "tiny-mix").subject
    kept = {name: getattr(subject, name) for name in ("image_decoder", "judge", "contrastive")}
    small = Subject(subject.arm, subject.held_out, subject.training, **kept, batch_size=3)
    for measure in (prompt_fidelity, agreement, diversity, reconstruction):
        one, two = measure(subject, FEW), measure(small, FEW)
        for name, figure in one.items():
            assert vars(figure) == pytest.approx(vars(two[name]), rel=1e-4, abs=1e-6)
    assert subject.drawn  # drawn once: fidelity and agreement score the same images


def test_the_contrastive_model_comes_back_as_it_was(pipeline: Path, held_out: SceneTasks) -> None:
    model = load_contrastive(pipeline / "output" / "encoder")
    tokenizer = Tokenizer.of_words(held_out.language.vocabulary())
    batch = RegionCollate(held_out.split, held_out.language, tokenizer)(range(4))
    assert not model.training
    with torch.no_grad():
        before = model.region_logits(model.encoder(batch.pixels), batch)
        save_contrastive(pipeline, model)
        shutil.copy(pipeline / "output" / "encoder" / "config.json", pipeline)
        shutil.copy(pipeline / "output" / "encoder" / "model.safetensors", pipeline)
        again = load_contrastive(pipeline)
        assert torch.equal(again.region_logits(again.encoder(batch.pixels), batch), before)
