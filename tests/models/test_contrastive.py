"""Contrastive pretraining: which text belongs to which picture, and where."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lab.models.contrastive import ContrastiveModel
from lab.registry import build
from lab.samples.regions import RegionCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks


@pytest.fixture
def model(tokenizer: Tokenizer) -> ContrastiveModel:
    torch.manual_seed(0)
    encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, 32)
    return ContrastiveModel(encoder, len(tokenizer), dim=32).eval()


def test_padding_of_a_caption_changes_nothing(model: ContrastiveModel) -> None:
    short = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(
        model.embed_text(F.pad(short, (0, 4))), model.embed_text(short), rtol=0, atol=1e-6
    )


def test_a_cell_is_read_from_its_own_tokens(model: ContrastiveModel) -> None:
    """On a 4 x 4 grid of tokens the cell top right of 2 x 2 is the mean of the four tokens there."""
    tokens = torch.randn(1, 16, 24)
    mean = tokens[:, [2, 3, 6, 7]].mean(dim=1)
    torch.testing.assert_close(model.regions(tokens, 2)[:, 1], mean)


def test_equal_captions_are_no_mistake(
    model: ContrastiveModel, tasks: SceneTasks, tokenizer: Tokenizer
) -> None:
    """Two pictures of one caption: naming either is right, so the loss is zero."""
    collate = RegionCollate(tasks.split, tasks.language, tokenizer)
    batch = collate([3, 3])
    with torch.no_grad():
        assert float(model.caption_loss(model.encoder(batch.pixels), batch)) == pytest.approx(0, abs=1e-5)


def test_reconstruction_is_exact_for_a_perfect_readout(
    model: ContrastiveModel, tasks: SceneTasks, tokenizer: Tokenizer
) -> None:
    """Given the raw patches as tokens, a readout that changes nothing has no error."""
    batch = RegionCollate(tasks.split, tasks.language, tokenizer)([1, 2])
    patches = F.pixel_unshuffle(batch.pixels, 8).flatten(2).transpose(1, 2)  # (B, 16, 192)
    assert patches.shape == (2, 16, 192)
    model.readout = torch.nn.Identity()
    assert float(model.reconstruction_loss(patches, batch)) == 0
    torch.testing.assert_close(patches[0, 5].view(3, 8, 8), batch.pixels[0, :, 8:16, 8:16])
