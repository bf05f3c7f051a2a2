"""The grammar of mixes: what it says, and what it says of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabError
from lab.samples.mix import parse, stated

ROWS = {"caption": 100, "vqa": 10_000, "gqa": 400, "text": 1}


def weights(tree: dict[str, Any], share: float = 0.0) -> dict[str, float]:
    """Shares of the sources after a share of training."""
    found = parse(tree).weights(share, ROWS)
    return {name: weight / sum(found.values()) for name, weight in found.items()}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"caption": 1, "vqa": 3}, {"caption": 0.25, "vqa": 0.75}),
        ({"of": {"caption": 1, "vqa": 3}}, {"caption": 0.25, "vqa": 0.75}),
        ({"of": ["caption", "vqa"]}, {"caption": 0.5, "vqa": 0.5}),
        ({"of": ["caption", "vqa"], "temperature": 1}, {"caption": 1 / 101, "vqa": 100 / 101}),
        ({"of": ["caption", "vqa"], "temperature": 2}, {"caption": 1 / 11, "vqa": 10 / 11}),
        ({"of": {"caption": 2, "vqa": 1}, "temperature": 2}, {"caption": 2 / 12, "vqa": 10 / 12}),
        (
            {"of": {"caption": 1, "vqa": {"rows": 400}}, "temperature": 2},
            {"caption": 1 / 3, "vqa": 2 / 3},
        ),
        (
            {"text": 1, "asked": {"weight": 3, "of": {"vqa": 2, "gqa": 1}}},
            {"text": 0.25, "vqa": 0.5, "gqa": 0.25},
        ),
        (
            {"text": 1, "asked": {"weight": 3, "of": ["vqa", "gqa"], "temperature": 2}},
            {"text": 0.25, "vqa": 0.75 * 5 / 6, "gqa": 0.75 / 6},
        ),
    ],
)
def test_a_mix_says_shares(tree: dict[str, Any], expected: dict[str, float]) -> None:
    assert weights(tree) == pytest.approx(expected)


def test_weights_move_over_training() -> None:
    tree: dict[str, Any] = {"of": {"caption": {"20%": 4, "60%": 0}, "vqa": 4}}
    linear = [parse(tree).weights(share, ROWS)["caption"] for share in (0, 0.2, 0.3, 0.4, 0.6, 1)]
    assert linear == pytest.approx([4, 4, 3, 2, 0, 0])
    steps = [parse({**tree, "curve": "steps"}).weights(share, ROWS)["caption"] for share in (0, 0.5, 0.6, 1)]
    assert steps == [4, 4, 0, 0]
    assert parse(tree).changes
    assert not parse({"caption": 1}).changes
    assert parse({"of": {"caption": {"0%": 0, "100%": 0}, "vqa": 4}}).ever() == ["vqa"]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (3, "m: expected weights by the names of sources, not 3"),
        ({"vqa": "much"}, "'m.vqa' must be a weight, a number of at least 0, not 'much'"),
        ({"vqa": True}, "'m.vqa' must be a weight"),
        ({"vqa": float("nan")}, "'m.vqa' must be a weight"),
        ({"vqa": -1}, "'m.vqa' must be a weight, a number of at least 0, not -1"),
        ({}, "m: all weights are 0; at least one"),
        ({"vqa": {"0%": 1, "50%": 0}}, "m: all weights are 0 at 50% of training"),
        (
            {"vqa": {"0%": 1, "150%": 2}},
            "m.vqa.150%: a point of a weight is a share of training, such as 30%",
        ),
        ({"vqa": {}}, None),
        ({"vqa": {"wieght": 1}}, "unknown key 'm.vqa.wieght' (did you mean 'weight'?)"),
        ({"vqa": {"weight": {"half": 1}}}, "m.vqa.weight.half: a point of a weight"),
        ({"vqa": {"epochs": 0}}, "'m.vqa.epochs' must be a number above 0, not 0"),
        ({"vqa": {"rows": 1.5}}, "'m.vqa.rows' must be a whole number, not 1.5"),
        (
            {"vqa": {"temperature": 2}},
            "m.vqa.temperature: of a source alone; it is for groups and whole mixes",
        ),
        ({"g": {"of": ["vqa"], "epochs": 2}}, "m.g.epochs: of a group; state it for its members"),
        ({"g": {"of": []}}, "m.g.of: a group needs at least one member"),
        ({"vqa": 1, "g": {"of": ["vqa"]}}, "m: 'vqa' twice"),
        ({"vqa": 1, "temperature": 2}, "m: temperature without 'of'"),
        ({"of": {"vqa": 1}, "tempreature": 2}, "unknown key 'm.tempreature' (did you mean 'temperature'?)"),
        ({"of": {"vqa": 1}, "count": "token"}, "m.count: no 'token' (did you mean 'tokens'?)"),
        ({"of": {"vqa": 1}, "curve": "step"}, "m.curve: no 'step' (did you mean 'steps'?)"),
        ({"of": {"vqa": 1}, "temperature": -1}, "'m.temperature' must be a number above 0, not -1"),
        ({"of": {"2nd": 1}}, "m.of: '2nd' is no name of a source"),
    ],
)
def test_a_mistake_is_named(tree: Any, expected: str | None) -> None:
    mistakes: list[str] = []
    if expected is None:
        assert stated(tree, "m", mistakes) is not None
        return
    assert stated(tree, "m", mistakes) is None
    assert expected in "; ".join(mistakes)


def test_all_mistakes_are_named_at_once() -> None:
    tree = {"of": {"a": -1, "b": {"epoch": 2, "rows": 0}, "c": {"0%": "x"}}, "count": "words"}
    with pytest.raises(LabError) as caught:
        parse(tree, "mixes.mine")
    for part in ("mixes.mine.of.a'", "'mixes.mine.of.b.epoch'", "of.b.rows'", "of.c.0%'", "mixes.mine.count"):
        assert part in str(caught.value)


def test_a_mix_stays_as_it_was_written() -> None:
    tree = {"count": "tokens", "of": {"a": 1, "b": {"weight": {"0%": 1}, "rows": 5}, "c": {"of": ["d"]}}}
    found = stated(tree, "m", [])
    assert found == tree
    assert type(found["of"]["a"]) is float
    assert type(found["of"]["b"]["rows"]) is int


def test_what_the_docs_show_is_well_formed() -> None:
    text = (Path(__file__).parents[2] / "docs" / "mixes.md").read_text()
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["mixes"]
    found = {name: parse(tree) for name, tree in shown.items()}
    assert found["rich"].planned
    assert found["rich"].count == "tokens"
    assert not found["photographs"].planned
