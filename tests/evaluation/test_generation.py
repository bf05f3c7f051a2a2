"""Images drawn and rebuilt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.evaluation.generation import draw_all, psnr, reconstruct
from lab.evaluation.judging import judge_accuracy, load_judge, reconstruction_metrics
from lab.models.arm import Arm
from lab.models.autoencoder import ImageAutoencoder
from lab.registry import build
from lab.scenes.judge import Judge, train_judge
from lab.scenes.tasks import SceneTasks


@pytest.fixture
def arm(new_arm: Callable[..., Arm]) -> Arm:
    made = new_arm()
    made.model.eval()
    return made


class Noisy(nn.Module):
    """An image decoder that draws nothing but its generator's noise, shifted by the tokens."""

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.rand(len(tokens), 3, 32, 32, generator=generator)
        return (0.5 * noise + 0.5 * tokens.mean(dim=(1, 2)).sigmoid().view(-1, 1, 1, 1)).clamp(0, 1)


class Perfect(nn.Module):
    """Encoder and image decoder at once that lose nothing."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).unsqueeze(1)

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return tokens.view(-1, 3, 32, 32)


def test_psnr_by_hand() -> None:
    """Off by a tenth everywhere: the squared error is 0.01, which is 20 dB; equal images end at 100 dB."""
    first = torch.full((3, 3, 4, 4), 0.5)
    second = first + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(first, second), [20, 40, 100], atol=1e-3)


@pytest.mark.parametrize("task", ["text_to_image", "edit"])
def test_batch_size_changes_no_image(arm: Arm, held_out: SceneTasks, task: str) -> None:
    """Also with a decoder that draws noise: each image has a generator of its own."""
    if (
        task == "interleaved"
    ):  # what precedes its image is produced too: drawn from the whole document elsewhere
        pytest.skip("its prompt ends at its caption")
    samples = [held_out.sample(task, row, 0) for row in range(9)]
    collate = arm.collate(tuple(held_out.tasks), left=True)
    whole, parts = (draw_all(arm.model, Noisy(), samples, collate, size, seed=5) for size in (9, 4))
    torch.testing.assert_close(whole.generated, parts.generated, rtol=0, atol=1e-5)
    assert whole.generated.shape == (9, 3, 32, 32)
    assert len({image.numpy().tobytes() for image in whole.generated}) == 9
    other = draw_all(arm.model, Noisy(), samples, collate, 9, seed=99)
    assert (other.generated - whole.generated).abs().max() > 0.1


def test_real_images_are_those_the_samples_ask_for(arm: Arm, held_out: SceneTasks) -> None:
    samples = [held_out.sample("edit", row, 0) for row in range(3)]
    collate = arm.collate(tuple(held_out.tasks), left=True)
    drawn = draw_all(arm.model, Noisy(), samples, collate, 2, seed=0)
    for image, sample in zip(drawn.real, samples, strict=True):
        (wanted,) = (part.pixels for part in sample.segments if part.supervised and part.pixels is not None)
        np.testing.assert_array_equal(image, wanted)


def test_a_perfect_pair_rebuilds_all(held_out: SceneTasks) -> None:
    pixels = torch.from_numpy(held_out.split.pixels(np.arange(10)))
    assert torch.equal(reconstruct(ImageAutoencoder(Perfect(), None, Perfect()), pixels, seed=0), pixels)


def test_rebuilt_images_are_judged_like_real_ones(tasks: SceneTasks, held_out: SceneTasks) -> None:
    judge = train_judge(tasks.split, steps=60, batch_size=32, learning_rate=3e-3, seed=0)
    honest = judge_accuracy(judge, held_out.split)
    assert honest.keys() == {"judge/digit", "judge/colour", "judge/place", "judge/scene"}
    rebuilt = reconstruction_metrics(
        ImageAutoencoder(Perfect(), None, Perfect()), judge, held_out.split, count=1000, seed=0
    )
    assert rebuilt["reconstruction/psnr"] == pytest.approx(100)
    assert rebuilt["reconstruction/digit"] == pytest.approx(honest["judge/digit"])
    assert rebuilt["reconstruction/scene"] == pytest.approx(honest["judge/scene"])
    encoder = build("encoder", {"name": "patches", "dim": 24}, 32)
    image_decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, 32)
    autoencoder = ImageAutoencoder(encoder, None, image_decoder).eval()
    blurred = reconstruction_metrics(autoencoder, judge, held_out.split, count=20, seed=0)
    assert blurred["reconstruction/psnr"] < 40


def test_a_judge_comes_back_from_disk(tasks: SceneTasks, tmp_path_factory: pytest.TempPathFactory) -> None:
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("judge")
    judge = train_judge(tasks.split, steps=3, batch_size=8, learning_rate=1e-3, seed=0)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    again: Judge = load_judge(folder, tasks.split.world)
    pixels = torch.rand(2, 3, 32, 32)
    assert not again.training
    with torch.no_grad():
        for one, two in zip(judge(pixels), again(pixels), strict=True):
            assert torch.equal(one, two)
