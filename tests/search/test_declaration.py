"""A declaration's mistakes are found before anything runs, all at once, with near misses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.search.declaration import read

REPOSITORY = Path(__file__).resolve().parents[2]


def mistakes(folder: Path, text: str) -> str:
    path = folder / "bad.yaml"
    path.write_text(text)
    with pytest.raises(LabError) as caught:
        read(path, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_project_s_own_sweeps_are_valid(folder: Path) -> None:
    paths = sorted((REPOSITORY / "sweeps").glob("*.yaml"))
    assert paths
    for path in paths:
        assert read(path, folder).space


def test_conditions_and_numbers_are_read(sweep: Path, folder: Path) -> None:
    declaration = read(sweep, folder)
    assert declaration.name == "try"
    assert declaration.experiment == "quickstart"
    queries = declaration.space[1]
    assert queries.exists({"connector": "q_former"})
    assert not queries.exists({"connector": "linear"})
    assert declaration.space[2].values == (3e-4, 3e-3)
    sweep.write_text(sweep.read_text().replace("3.0e-4, 3.0e-3", "3e-4, 3e-3"))  # text, to YAML
    assert read(sweep, folder).space == declaration.space
    assert read(sweep, folder).study == declaration.study


def test_all_mistakes_are_said_at_once(folder: Path) -> None:
    message = mistakes(
        folder,
        """
        objectiv: understanding/vqa
        direction: maximise
        trials: none
        sampler: tpee
        pruner: medain
        space:
          connector: {choices: [linear, q_fromer]}
          mix: {choices: [understandign]}
          stages.instruct.learning_rat.connector: {log: [1.0e-4, 1.0e-3]}
          stages.instruct.steps: {int: [200, 100]}
          seed: {chioces: [0, 1]}
          connector.num_queries: {int: [8, 32], when: {connectr: q_former}}
        """,
    )
    for word in (
        "unknown key 'objectiv' (did you mean 'objective'?)",
        "missing 'objective'",
        "direction: no 'maximise' (did you mean 'maximize'?)",
        "trials: a whole number of at least 1 is expected, not 'none'",
        "sampler: no 'tpee' (did you mean 'tpe'?)",
        "pruner: no 'medain' (did you mean 'median'?)",
        "did you mean 'q_former'?",
        "did you mean 'understanding'?",
        "space.stages.instruct.learning_rat.connector",
        "space.stages.instruct.steps: int: [lowest, highest] is expected",
        "space.seed: unknown key 'chioces' (did you mean 'choices'?)",
        "'connectr' has no choices above this line (did you mean 'connector'?)",
    ):
        assert word in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a mapping"),
        ("a: [", "while parsing"),
        ("objective: understanding/vqq\nspace: {seed: {choices: [0]}}", "did you mean 'understanding/vqa'?"),
        ("objective: understanding/vqa", "missing 'space'"),
        ("objective: understanding/vqa\nspace: {seed: {log: [0, 1]}}", "above 0"),
        ("objective: understanding/vqa\nspace: {seed: {int: [0.5, 1]}}", "whole bounds"),
        ("objective: understanding/vqa\nspace: {seed: {choices: [0, 0]}}", "different"),
        ("objective: understanding/vqa\nspace: {seed: 3}", "space.seed: a mapping is expected"),
        ("objective: understanding/vqa\nstorage: here.db\nspace: {seed: {choices: [0]}}", "a URL"),
        (
            "objective: understanding/vqa\nset: {stages.instruct.stepz: 1}\nspace: {seed: {choices: [0]}}",
            "did you mean 'steps'?",
        ),
        (
            "objective: understanding/vqa\nspace: {connector: {choices: [linear]}, "
            "seed: {int: [0, 1], when: {connector: q_former}}}",
            "'q_former' is no choice of connector",
        ),
    ],
)
def test_a_mistake_is_named(folder: Path, text: str, said: str) -> None:
    assert said in mistakes(folder, text)


def test_a_missing_file_names_its_neighbours(sweep: Path, folder: Path) -> None:
    with pytest.raises(LabError, match=r"did you mean '.*try\.yaml'"):
        read(folder / "tri.yaml", folder)
