"""The resampler with several images or frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab.errors import LabError

Build = Callable[..., Any]


def test_outputs_go_with_their_latents(build_small: Build) -> None:
    connector = build_small("connector", "perceiver").eval()
    tokens, order = torch.randn(2, 16, 24), torch.randperm(5)
    before = connector(tokens)
    connector.latents.data = connector.latents.data[:, order]
    torch.testing.assert_close(connector(tokens), before[:, order], atol=1e-5, rtol=0)


def test_without_time_embeddings_frames_are_a_set(build_small: Build) -> None:
    connector = build_small("connector", "perceiver").eval()
    frames = torch.randn(2, 3, 16, 24)
    together = connector(frames)
    assert together.shape == (2, 5, 40)
    torch.testing.assert_close(connector(frames.flip(1)), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(connector(frames[:, :1]), connector(frames[:, 0]))
    assert "times" not in connector.state_dict()


def test_time_embeddings_tell_frames_apart(build_small: Build) -> None:
    connector = build_small("connector", "perceiver", frames=4).eval()
    frames = torch.randn(2, 4, 16, 24)
    assert not torch.allclose(connector(frames.flip(1)), connector(frames), atol=1e-3)
    torch.testing.assert_close(connector(frames[:, :1]), connector(frames[:, 0]))  # an image is frame 0
    placed = connector.norm_image(frames) + connector.positions + connector.times[:, None]
    connector.positions = connector.times = None
    torch.testing.assert_close(connector(placed.flatten(1, 2)), connector(placed))


def test_every_time_embedding_learns(build_small: Build) -> None:
    connector = build_small("connector", "perceiver", frames=4)
    connector(torch.randn(2, 4, 16, 24)).square().sum().backward()
    assert connector.times.grad.any(dim=1).all()


def test_more_frames_have_times_between_those_learned(build_small: Build) -> None:
    connector = build_small("connector", "perceiver", frames=3)
    times = connector._times(5)
    torch.testing.assert_close(times[::2], connector.times)
    torch.testing.assert_close(times[1], (connector.times[0] + connector.times[1]) / 2)
    assert torch.equal(connector._times(2), connector.times[:2])
    assert connector(torch.randn(2, 30, 16, 24)).shape == (2, 5, 40)


def test_no_frames_are_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="frames must be at least 1"):
        build_small("connector", "perceiver", frames=0)
