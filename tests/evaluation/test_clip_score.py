"""The lab's own CLIP score: cell by cell, as a loop would have it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.evaluation.clip_score import region_score
from lab.models.contrastive import ContrastiveModel
from lab.registry import build
from lab.samples.regions import RegionCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import EMPTY


def test_it_is_the_mean_cosine_of_the_cells_that_should_hold_a_digit(
    held_out: SceneTasks, tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, 32)
    model = ContrastiveModel(encoder, len(tokenizer)).eval()
    rows = list(range(9))
    pixels = torch.from_numpy(held_out.split.pixels(np.array(rows)))
    collate = RegionCollate(held_out.split, held_out.language, tokenizer)
    score, first = region_score(model, collate, pixels, rows)
    language, scenes = held_out.language, held_out.split.scenes
    known = collate(rows).phrases  # (U, L)
    with torch.no_grad():
        for row in rows:
            regions = model.region_projection(model.regions(encoder(pixels[row : row + 1]), 2))[0]
            cosines, ranks = [], []
            for cell in np.flatnonzero(scenes.digit[row] != EMPTY):
                thing = next(t for t in held_out._things(scenes.take(np.array([row]))) if t.cell == cell)
                phrase = f"{language.places[cell]} {thing.colour} {thing.digit}"
                ids = torch.tensor([tokenizer.encode(phrase)])
                own = torch.cosine_similarity(regions[cell], model.embed_text(ids)[0], dim=0)
                every = torch.cosine_similarity(regions[cell].unsqueeze(0), model.embed_text(known), dim=1)
                cosines.append(max(0.0, float(own)))
                ranks.append(float(own) >= float(every.max()) - 1e-6)
            assert score[row] == pytest.approx(100 * np.mean(cosines), abs=1e-3)
            assert first[row] == pytest.approx(np.mean(ranks))
    order = [4, 0, 8]
    again, _ = region_score(model, collate, pixels[order], order)
    assert again.tolist() == pytest.approx(score[order].tolist(), abs=1e-4)
