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
        objectivs: {understanding/vqa: maximize}
        trials: none
        sampler: tpee
        pruner: medain
        constraints: {memroy: 100, flops: -1}
        fidelity: {step: [1, 2]}
        resources: {cpu: 2}
        space:
          connector: {choices: [linear, q_fromer]}
          mix: {choices: [understandign]}
          stages.instruct.learning_rat.connector: {log: [1.0e-4, 1.0e-3]}
          stages.instruct.steps: {int: [200, 100]}
          seed: {chioces: [0, 1]}
          stages.align.mix: {simplex: {look: {vqaa: 1}, draw: {text_to_image: 1}}}
          connector.num_queries: {int: [8, 32], when: {connectr: q_former}}
        """,
    )
    for word in (
        "unknown key 'objectivs' (did you mean 'objectives'?)",
        "missing 'objectives'",
        "trials: a whole number of at least 1 is expected, not 'none'",
        "sampler: no 'tpee' (did you mean 'tpe'?)",
        "pruner: no 'medain' (did you mean 'median'?)",
        "constraints: unknown key 'memroy' (did you mean 'memory'?)",
        "constraints.flops: a number above 0",
        "fidelity: unknown key 'step' (did you mean 'steps'?)",
        "unknown key 'resources.cpu' (did you mean 'cpus'?)",
        "did you mean 'q_former'?",
        "did you mean 'understanding'?",
        "space.stages.instruct.learning_rat.connector",
        "space.stages.instruct.steps: int: [lowest, highest] is expected",
        "space.seed: unknown key 'chioces' (did you mean 'choices'?)",
        "no task 'vqaa' (did you mean 'vqa'?)",
        "'connectr' has no choices above this line (did you mean 'connector'?)",
    ):
        assert word in message


ONE = "objectives: {understanding/vqa: maximize}\n"
TWO = "objectives: {understanding/vqa: maximize, generation/frechet: minimize}\n"
NUMBERS = "space: {stages.instruct.learning_rate.connector: {log: [1.0e-4, 1.0e-3]}, seed: {int: [0, 9]}}\n"
WORDS = "space: {connector: {choices: [linear, q_former]}}\n"
BOUND = (
    "space: {connector: {choices: [linear, q_former]}, "
    "connector.num_queries: {int: [8, 32], when: {connector: q_former}}}\n"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a mapping"),
        ("a: [", "while parsing"),
        (f"objectives: {{understanding/vqq: maximize}}\n{WORDS}", "did you mean 'understanding/vqa'?"),
        (f"objectives: {{understanding/vqa: maximise}}\n{WORDS}", "did you mean 'maximize'?"),
        (f"objectives: understanding/vqa\n{WORDS}", "objectives: a mapping is expected"),
        (ONE, "missing 'space'"),
        (f"{ONE}space: {{seed: {{log: [0, 1]}}}}", "above 0"),
        (f"{ONE}space: {{seed: {{int: [0.5, 1]}}}}", "whole bounds"),
        (f"{ONE}space: {{seed: {{choices: [0, 0]}}}}", "different"),
        (f"{ONE}space: {{seed: 3}}", "space.seed: a mapping is expected"),
        (f"{ONE}space: {{mix: {{simplex: [vqa]}}}}", "at least two tasks"),
        (f"{ONE}space: {{mix: {{simplex: {{a: {{vqa: 0}}, b: {{text: 1}}}}}}}}", "weights above 0"),
        (f"{ONE}space: {{seed: {{simplex: [vqa, text]}}}}", "simplex is for mixes"),
        (f"{ONE}set: {{seed: 1}}\nspace: {{seed: {{int: [0, 9]}}}}", "space.seed: stands in 'set' as well"),
        (f"{ONE}{WORDS}storage: here.db", "a URL"),
        (f"{ONE}{WORDS}set: {{stages.instruct.stepz: 1}}", "did you mean 'steps'?"),
        (
            f"{ONE}space: {{connector: {{choices: [linear]}}, "
            "seed: {int: [0, 1], when: {connector: q_former}}}",
            "'q_former' is no choice of connector",
        ),
        # methods that do not go together
        (f"{TWO}{WORDS}pruner: median", "cannot tell which trials to stop for several objectives"),
        (f"{TWO}{NUMBERS}fidelity: {{steps: [50]}}", "makes no use of rungs"),
        (f"{ONE}{NUMBERS}pruner: median\nfidelity: {{steps: [50]}}", "use asha or hyperband"),
        (f"{ONE}{NUMBERS}pruner: asha", "state fidelity"),
        (f"{TWO}{NUMBERS}sampler: cmaes", "takes one objective"),
        (f"{ONE}{WORDS}sampler: cmaes", "takes numbers only, not the choices of connector"),
        (f"{ONE}space: {{seed: {{int: [0, 9]}}}}\nsampler: cmaes", "at least two numbers"),
        (f"{ONE}{NUMBERS}sampler: grid", "learning_rate.connector has no end of values"),
        (f"{ONE}{BOUND}sampler: gp", "connector.num_queries exists under a condition"),
        (f"{ONE}{WORDS}sampler: grid\ntrials: 3", "the grid has 2 points"),
        # rungs
        (f"{ONE}{NUMBERS}fidelity: {{steps: [50, 20]}}", "ascending whole numbers"),
        (f"{ONE}{NUMBERS}fidelity: {{steps: [50, 5000]}}", "below 1100, what instruct has in all"),
        (f"{ONE}{NUMBERS}fidelity: {{samples: [50]}}", "multiples of instruct's batch_size 16"),
        (f"{ONE}{NUMBERS}fidelity: {{steps: [50], reduction: 1}}", "fidelity.reduction"),
    ],
)
def test_a_mistake_is_named(folder: Path, text: str, said: str) -> None:
    assert said in mistakes(folder, text)


@pytest.mark.parametrize(
    ("sampler", "objectives"), [("tpe", TWO), ("nsga2", TWO), ("gp", TWO), ("cmaes", ONE), ("qmc", TWO)]
)
def test_samplers_take_numbers_and_mixes(folder: Path, sampler: str, objectives: str) -> None:
    mixed = NUMBERS.replace("space: {", "space: {mix: {simplex: [caption, vqa, text_to_image]}, ")
    (folder / "good.yaml").write_text(f"{objectives}{mixed}sampler: {sampler}")
    assert read(folder / "good.yaml", folder).sampler == sampler


def test_a_grid_says_itself_how_many_trials_there_are(folder: Path) -> None:
    (folder / "good.yaml").write_text(f"{ONE}{BOUND}sampler: grid")
    assert read(folder / "good.yaml", folder).trials == 1 + 25


def test_stages_that_the_space_changes_are_known(folder: Path) -> None:
    for space, stages in (
        (NUMBERS.replace(", seed: {int: [0, 9]}", ""), ("instruct", "evaluate")),
        (WORDS, ("align", "instruct", "evaluate")),
    ):
        (folder / "good.yaml").write_text(f"{ONE}{space}")
        assert read(folder / "good.yaml", folder).trained == stages


def test_a_missing_file_names_its_neighbours(sweep: Path, folder: Path) -> None:
    with pytest.raises(LabError, match=r"did you mean '.*try\.yaml'"):
        read(folder / "tri.yaml", folder)
