"""Pictures during a training: they arrive, and the training does not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from lab.graph import watching
from lab.models.arm import Arm
from lab.models.store import save_component
from lab.registry import build
from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.training.fit import FitSettings, fit
from lab.training.modules import UnifiedTraining

SETTINGS = FitSettings(steps=10, batch_size=4, precision="32-true", clip=1.0, log_every=1, checkpoint_every=5)


class Shown:
    """Stands for a tracked run: what was shown at which step, and what was said of it."""

    def __init__(self) -> None:
        self.pictures: dict[int, Any] = {}
        self.losses: list[float] = []

    def image(self, name: str, image: Any, step: int) -> None:
        self.pictures[step] = image

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.losses += [value for name, value in values.items() if name == "train/loss"]

    def flush(self) -> None:
        pass


@pytest.fixture
def decoder(new_arm: Callable[..., Arm], tmp_path: Path) -> Path:
    """The folder of an image decoder for the tiny arm."""
    encoder = new_arm().model.encoder
    spec: dict[str, Any] = {"name": "transformer", "dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0}
    args = (encoder.dim, encoder.num_tokens, 32)
    save_component(tmp_path / "decoder", "image_decoder", spec, args, build("image_decoder", spec, *args))
    return tmp_path / "decoder"


Train = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def train(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Train:
    """Trains an arm that is looked at as often as may be; gives its weights."""
    monkeypatch.setattr(watching, "_SECONDS", 1e9)

    def run(
        shown: Shown, decoder_at: Callable[[], Path | None] | None, **specs: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        arm = new_arm(**specs)
        module = UnifiedTraining(
            arm.model,
            ["connector", "text_decoder", "visual_head"],
            1.0,
            arm.image_marks,
            learning_rates={"": 1e-3},
            steps=SETTINGS.steps,
            warmup=2,
            weight_decay=0.0,
        )
        collate = arm.collate(tuple(tasks.tasks))
        mix = {"caption": 1.0, "text_to_image": 1.0}
        data = Mixture(tasks.sources(), mix, SETTINGS.steps * SETTINGS.batch_size, 0, collate.length)
        looks = () if decoder_at is None else (watching.Looks(shown, arm, tasks, decoder_at),)  # type: ignore[arg-type]
        torch.manual_seed(1)
        work = Path(mkdtemp(dir=tmp_path))
        fit(module, data, collate, SETTINGS, work, "instruct", shown, looks)
        return arm.model.state_dict()

    return run


def test_looking_changes_no_bit(train: Train, decoder: Path) -> None:
    # a head that draws random numbers as it trains
    head = {"name": "regression", "loss": "mse", "hide": 0.5, "noise": 0.2}
    blind, seen = Shown(), Shown()
    expected = train(blind, None, visual_head=head)
    found = train(seen, lambda: decoder, visual_head=head)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert seen.losses == blind.losses
    assert list(seen.pictures) == [0, 3, 5, 8, 10]
    assert len({picture.size for picture in seen.pictures.values()}) == 1
    assert seen.pictures[0].tobytes() != seen.pictures[10].tobytes()


def test_looks_wait_for_the_image_decoder_and_keep_to_their_share(
    train: Train, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, None, decoder])
    late = Shown()
    train(late, lambda: next(answers))
    assert list(late.pictures) == [5, 8, 10]
    monkeypatch.setattr(watching, "_SECONDS", 0.0)
    monkeypatch.setattr(watching, "_SHARE", 1e-9)
    hurried = Shown()
    train(hurried, lambda: decoder)
    assert list(hurried.pictures) == [0]  # whose cost nobody could know


def test_a_picture_that_fails_costs_no_training(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Shown()
    train(shown, lambda: tmp_path / "nowhere")
    assert shown.pictures == {}
    assert len(shown.losses) == SETTINGS.steps
    assert len([record for record in caplog.records if "no more pictures" in record.message]) == 1


def test_an_image_decoder_of_another_encoder_is_not_used(tmp_path: Path) -> None:
    """What an earlier pipeline left in the folder draws nothing that means anything."""
    from types import SimpleNamespace

    from lab.config import load_params

    root = Path(__file__).parents[2]
    params = load_params(root / "params.yaml")

    def record(name: str, **upstream: str) -> None:
        (tmp_path / "output" / name).mkdir(parents=True)
        (tmp_path / "output" / name / "node.json").write_text(json.dumps({"upstream": upstream}))

    record("align/linear", data="d", encoder="e")
    record("image_decoder", data="d", encoder="e")
    node = SimpleNamespace(
        content={"upstream": {"data": "d", "align/linear": "a"}}, instance="linear-generation"
    )
    context: Any = SimpleNamespace(
        folder=tmp_path, params=params, stage="instruct", connector="linear", mix="generation", node=node
    )
    assert watching.decoder_of(context) == tmp_path / "output" / "image_decoder"
    (tmp_path / "output/image_decoder/node.json").write_text(
        json.dumps({"upstream": {"data": "d", "encoder": "older"}})
    )
    assert watching.decoder_of(context) is None
