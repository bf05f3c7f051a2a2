"""The instruction-aware Q-Former of InstructBLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

Build = Callable[..., Any]


@pytest.fixture
def aware(build_small: Build) -> Any:
    connector = build_small("connector", "q_former", instruction=True, max_text=12).eval()
    for name, parameter in connector.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return connector


def test_outputs_go_with_their_queries(build_small: Build) -> None:
    connector = build_small("connector", "q_former").eval()
    tokens, order = torch.randn(2, 16, 24), torch.randperm(5)
    before = connector(tokens)
    connector.queries.data = connector.queries.data[:, order]
    torch.testing.assert_close(connector(tokens), before[:, order], atol=1e-5, rtol=0)


def test_two_questions_read_one_image_in_two_ways(aware: Any, build_small: Build) -> None:
    tokens = torch.randn(1, 16, 24).expand(2, -1, -1)
    read = aware(tokens, torch.randn(2, 6, 40))
    assert read.shape == (2, 5, 40)
    assert aware.reads_text
    assert not torch.isclose(read[0], read[1], atol=1e-3).all(dim=1).any()
    plain = build_small("connector", "q_former").eval()
    assert not plain.reads_text
    assert torch.equal(*plain(tokens))


def test_padding_changes_nothing_wherever_it_stands(aware: Any) -> None:
    tokens, text = torch.randn(2, 16, 24), torch.randn(2, 6, 40)
    mask = torch.ones(2, 6, dtype=torch.bool)
    expected = aware(tokens, text)
    for pad in ((0, 4), (4, 0), (2, 2)):
        padded = F.pad(text, (0, 0, *pad), value=7.0)
        read = aware(tokens, padded, F.pad(mask, pad))
        torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)
    nothing = aware(tokens, text, torch.zeros_like(mask))
    torch.testing.assert_close(nothing, aware.project(aware.run(tokens)), atol=1e-5, rtol=0)
    assert aware(tokens, text[:, :0]).isfinite().all()


def test_order_of_words_matters(aware: Any) -> None:
    tokens, text = torch.randn(2, 16, 24), torch.randn(2, 6, 40)
    assert not torch.allclose(aware(tokens, text), aware(tokens, text.flip(1)), atol=1e-3)


def test_rows_are_independent(aware: Any) -> None:
    tokens, text = torch.randn(3, 16, 24), torch.randn(3, 6, 40)
    before = aware(tokens, text)
    text[1] = torch.randn(6, 40)
    after = aware(tokens, text)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


def test_gradients_reach_every_parameter_and_the_question(build_small: Build) -> None:
    connector = build_small("connector", "q_former", instruction=True)
    text = torch.randn(2, 6, 40, requires_grad=True)
    connector(torch.randn(2, 16, 24), text).square().sum().backward()
    assert text.grad is not None
    assert text.grad.any(dim=2).all()
    assert not [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()]


def test_weights_of_a_plain_q_former_fit(build_small: Build) -> None:
    """InstructBLIP starts from BLIP-2; what reads text is new."""
    plain = build_small("connector", "q_former")
    aware = build_small("connector", "q_former", instruction=True)
    report = aware.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {key.split(".")[0] for key in report.missing_keys} == {
        "project_text",
        "text_mlps",
        "text_positions",
    }
    assert [len(c.text_mlps) for c in (plain, aware)] == [0, 2]  # none where the last block's text would go


def test_wrong_calls_are_named(aware: Any, build_small: Build) -> None:
    tokens, text = torch.randn(2, 16, 24), torch.randn(2, 13, 40)
    with pytest.raises(ValueError, match="13 tokens of text, but max_text is 12"):
        aware(tokens, text)
    with pytest.raises(ValueError, match="the question's embeddings are missing"):
        aware(tokens)
    with pytest.raises(ValueError, match="reads no text"):
        build_small("connector", "q_former")(tokens, text)
