"""`params.yaml`: every mistake is found before anything runs, all at once, each with what would be right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.config import ROLES, TASKS, Params, check_params, load_params, read_tree
from lab.errors import LabError
from lab.scenes.tasks import SceneTasks

ROOT = Path(__file__).parents[1]
FILE = ROOT / "experiments" / "ablations" / "smoke" / "params.yaml"  # the one whose numbers nobody tunes
PIPELINES = [ROOT / "params.yaml", *sorted(ROOT.glob("experiments/ablations/*/params.yaml"))]


@pytest.fixture
def tree() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def put(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a dotted key."""
    changed = deepcopy(tree)
    *path, last = key.split(".")
    place = changed
    for part in path:
        place = place[part]
    place[last] = value
    return changed


def message(tree: Mapping[str, Any]) -> str:
    with pytest.raises(LabError) as caught:
        check_params(tree)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- every pipeline of the repository ------------------------------------------------------------------------


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: str(file.relative_to(ROOT)))
def test_pipelines_are_valid_and_complete(file: Path) -> None:
    params = load_params(file)
    assert (file.parent / params.root).resolve() == ROOT
    assert keys(yaml.safe_load(file.read_text())) == keys(yaml.safe_load((ROOT / "params.yaml").read_text()))


def keys(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys, but for names that a pipeline gives and settings that a part has defaults for."""
    found = set()
    for key, value in tree.items():
        found.add(f"{prefix}{key}")
        free = ("mixes", "settings", "losses", "mix", "learning_rate")
        if isinstance(value, Mapping) and key not in free:
            found |= keys(value, f"{prefix}{key}.")
    return found


def test_only_what_is_needed_differs_between_pipelines() -> None:
    texts = {
        file.with_name("dvc.yaml").read_text() for file in PIPELINES if file.with_name("dvc.yaml").exists()
    }
    assert len(texts) == 1
    names = [load_params(file).name for file in PIPELINES]
    assert len(set(names)) == len(names)  # each its own experiment in MLflow


def test_known_tasks_are_those_of_the_world(tasks: SceneTasks) -> None:
    assert set(TASKS) == set(tasks.tasks)


# -- mistakes ------------------------------------------------------------------------------------------------


def test_all_mistakes_are_named_at_once(tree: dict[str, Any]) -> None:
    del tree["seed"]
    tree["thread"] = 1
    tree["world"]["image_size"] = "large"
    tree["stages"]["encoder"]["steps"] = 1.5
    tree["stages"]["align"]["learningrate"] = {}
    found = message(tree)
    for part in (
        "missing key 'seed'",
        "unknown key 'thread' (did you mean 'threads'?)",
        "'world.image_size' must be int, not 'large'",
        "'stages.encoder.steps' must be int, not 1.5",
        "unknown key 'stages.align.learningrate' (did you mean 'learning_rate'?)",
    ):
        assert part in found


def test_all_wrong_words_are_named_at_once(tree: dict[str, Any]) -> None:
    tree["encoder"] = "vti"
    tree["connectors"] = ["linear", "q_fromer"]
    tree["settings"]["connector"]["linaer"] = {}
    tree["settings"]["text_decoder"]["llama"]["dpeth"] = 3
    tree["settings"]["encoders"] = {}
    found = message(tree)
    for part in ("'vit'", "'q_former'", "'linear'", "'depth'", "'encoder'"):
        assert f"did you mean {part}?" in found, found


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("mixes.understanding", {"vqaa": 1.0}, "mixes.understanding: no task 'vqaa' (did you mean 'vqa'?)"),
        ("mixes.generation", {"vqa": 0.0}, "mixes.generation: all weights are 0"),
        (
            "mixes.generation",
            {"vqa": -1.0, "edit": 2.0},
            "'mixes.generation.vqa' must be a weight, a number of",
        ),
        ("mixes.generation", {}, "mixes.generation: all weights are 0"),
        ("mixes.generation", {"vqa": "much"}, "'mixes.generation.vqa' must be a weight, a number of"),
        ("mixes.more-text", {"text": 1}, "'more-text' may not contain '-'"),
        ("mixes", {}, "mixes: each needs at least one"),
        ("connectors", [], "connectors and mixes: each needs at least one"),
        ("connectors", "linear", "'connectors' must be a list, not 'linear'"),
        ("stages.align.mix", {"drawn": 1.0}, "stages.align.mix: no task 'drawn'"),
        ("stages.align.trainable", ["conector"], "no part 'conector' (did you mean 'connector'?)"),
        ("stages.align.trainable", ["encoder"], "stages.align.learning_rate: none for 'encoder'"),
        ("stages.instruct.trainable", ["text_decoder.lora"], "has no lora_rank"),
        ("stages.text_decoder.log_every", 0, "'stages.text_decoder.log_every' must be at least 1"),
        ("stages.image_decoder.checkpoint_every", -1, "must be at least 1, not -1"),
        ("stages.evaluate", None, "stages.evaluate: expected a mapping, not None"),
        ("world", [1], "world: expected a mapping, not [1]"),
        ("stages.instruct.clip", True, "'stages.instruct.clip' must be float, not True"),
        ("stages.encoder.learning_rate", "1e-3", "'stages.encoder.learning_rate' must be float, not '1e-3'"),
        ("settings.connector.linear", 3, "'settings.connector.linear' must be a mapping, not 3"),
    ],
)
def test_a_mistake_is_named(tree: dict[str, Any], key: str, value: Any, expected: str) -> None:
    assert expected in message(put(tree, key, value))


@pytest.mark.parametrize("word", ["on", "off"])
def test_words_that_yaml_reads_as_truth_values_are_words(word: str) -> None:
    overrides = [f"trainer.compile={word}", f"trainer.fused={word}", "trainer.preflight=off"]
    trainer = check_params(read_tree(FILE, overrides)).trainer
    assert (trainer.compile, trainer.fused, trainer.preflight) == (word, word, "off")


def test_every_trainable_part_can_be_trained(tree: dict[str, Any]) -> None:
    tree["settings"]["text_decoder"]["llama"]["lora_rank"] = 2
    tree["settings"]["fusion"]["cross_attention"] = {"every": 1}
    tree["recipe"] = [
        "data",
        "judge",
        "encoder",
        "text_decoder",
        "align",
        "instruct",
        "image_decoder",
        "evaluate",
    ]
    for part in (*ROLES, "text_decoder.lora", "text_decoder.*norm*", "connector.project.*"):
        recipe = {**tree["stages"]["align"], "trainable": [part], "learning_rate": dict.fromkeys(ROLES, 1e-3)}
        tree["fusion"] = "cross_attention" if part == "fusion" else "sequence"
        check_params(put(tree, "stages.align", recipe))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [1", "params.yaml"), ("- 1", "expected a mapping"), ("", "missing key|expected a mapping")],
)
def test_a_file_that_is_no_mapping_says_so(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(LabError, match=expected) as caught:
        load_params(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match=r"no such file; run the command in a folder that holds a params\.yaml"
    ):
        load_params(tmp_path / "params.yaml")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path}/harm']\n")
    with pytest.raises(LabError):
        load_params(file)
    assert not (tmp_path / "harm").exists()


# -- overrides -----------------------------------------------------------------------------------------------


def changed(*overrides: str) -> Params:
    return load_params(FILE, overrides)


def test_a_connector_alone() -> None:
    params = changed("connector=q_former")
    assert params.connectors == ["q_former"]
    assert params.spec("connector", "q_former")["num_queries"] == 4  # its settings stay


def test_a_mix_alone() -> None:
    assert list(changed("mix=generation").mixes) == ["generation"]
    with pytest.raises(LabError, match=r"no mix 'genration' \(did you mean 'generation'\?\)"):
        changed("mix=genration")


@pytest.mark.parametrize("order", [1, -1])
def test_a_setting_of_the_chosen_word(order: int) -> None:
    params = changed(*["connector=q_former", "connector.num_queries=7"][::order])
    assert params.spec("connector", "q_former")["num_queries"] == 7
    assert params.settings["connector"]["linear"] == {}
    params = changed(*["encoder=patches", "encoder.dim=48"][::order])
    assert params.spec("encoder", "patches") == {"name": "patches", "patch_size": 8, "dim": 48}
    assert params.settings["encoder"]["vit"]["dim"] == 32


def test_numbers_words_and_lists_are_read_as_in_yaml() -> None:
    params = changed(
        "stages.encoder.learning_rate=1e-3", "seed=7", "stages.align.trainable=[connector]", "name=mine"
    )
    assert params.stages.encoder.learning_rate == 1e-3
    assert (params.seed, params.name, params.stages.align.trainable) == (7, "mine", ["connector"])


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_mix(order: int) -> None:
    params = changed(*["mixes.mine.vqa=2", "mixes.mine.edit=1", "mix=mine"][::order])
    assert params.mixes == {"mine": {"vqa": 2.0, "edit": 1.0}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("connector", "expected key=value"),
        ("=3", "expected key=value"),
        ("sede=3", r"unknown key 'sede' \(did you mean 'seed'\?\)"),
        ("stages.encodr.steps=3", r"unknown key 'stages\.encodr' \(did you mean 'encoder'\?\)"),
        ("stages.encoder.step=3", r"unknown key 'stages\.encoder\.step' \(did you mean 'steps'\?\)"),
        ("seed.more=3", r"unknown key 'seed'|unknown key 'seed\.more'"),
        ("connector.num_query=3", "no setting 'num_query'"),
        ("connector=q_fromer", r"no connector 'q_fromer' \(did you mean 'q_former'\?\)"),
        ("seed=[1", "override 'seed=\\[1'"),
        ("seed=many", "'seed' must be int, not 'many'"),
    ],
)
def test_a_wrong_override_is_named(override: str, expected: str) -> None:
    with pytest.raises(LabError, match=expected) as caught:
        changed(override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["connectors", "mixes", "encoder"])
@pytest.mark.parametrize("override", ["connector.x=1", "mix=a", "encoder.x=1"])
def test_overrides_of_a_broken_file_do_not_break_the_message(
    tree: dict[str, Any], tmp_path: Path, missing: str, override: str
) -> None:
    del tree[missing]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(LabError):
        load_params(file, [override])


def test_the_command_says_what_was_meant(tmp_path: Path) -> None:
    """The real command line: exit code 2, one line, no traceback, nothing run."""
    (tmp_path / "params.yaml").write_text(FILE.read_text())
    done = subprocess.run(
        [sys.executable, "-m", "lab", "train", "connector=q_fromer"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("lab: error: ")
    assert done.stderr.count("\n") == 1
    assert "did you mean 'q_former'?" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
