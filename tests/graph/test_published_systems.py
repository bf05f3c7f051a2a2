"""Every declared system in its small size trains what its recipe says, and nothing else moves by a bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.config import Params
from lab.graph.context import world_of
from lab.graph.small import small_params
from lab.graph.stages import UNIFIED
from lab.graph.system import find, names, read_system
from lab.models.arm import Arm
from lab.registry import build
from lab.samples.batch import Batch
from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import read_split, write_world
from lab.training.modules import UnifiedTraining
from lab.training.trainable import ROWS_ONLY
from tests.systems import fresh

LIMIT = 42  # lines of a declaration


def declared(name: str, *overrides: str) -> Params:
    return small_params(read_system(find(name)), find(name), list(overrides))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneTasks:
    """A few scenes of the world that all small systems share."""
    folder = tmp_path_factory.mktemp("systems")
    params = declared("llava")
    world = world_of(params)
    write_world(folder, world, {"train": 100, "validation": 10, "test": 10}, seed=0)
    return SceneTasks(read_split(folder, world, "train"), turns=2)


def batch_of(arm: Arm, params: Params, scenes: SceneTasks, size: int = 6) -> Batch:
    mix = next(iter(params.mixes.values()))
    data = Mixture(scenes.sources(), dict.fromkeys(mix, 1.0), size, seed=0)
    return arm.collate(tuple(scenes.tasks))([data[row] for row in range(size)])


def test_declarations_are_short() -> None:
    for name in names():
        assert len(find(name).read_text().splitlines()) <= LIMIT, name


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_system_trains_what_its_recipe_says(name: str, scenes: SceneTasks) -> None:
    params = declared(name)
    arm = fresh(params, scenes)
    batch = batch_of(arm, params, scenes)
    assert int(batch.drawn.sum()) == len(batch.pixels_drawn) * arm.model.tokens_drawn
    assert int(batch.read.sum()) == len(batch.pixels_read) * arm.model.tokens_read
    stage = [one for one in params.recipe if one in UNIFIED][-1]
    settings = params.fitted(stage)
    module = UnifiedTraining.of(arm, replace(settings, steps=4, warmup=0, weight_decay=0.1))
    before = {key: value.clone() for key, value in arm.model.state_dict().items()}
    optimizers: Any = module.configure_optimizers()
    module.on_train_start()
    for step in range(3):  # gates and adapters let gradients through from the second step on
        optimizers["optimizer"].zero_grad()
        module.training_step(batch, step).backward()
        optimizers["optimizer"].step()
    changed = {key for key, value in arm.model.state_dict().items() if not torch.equal(before[key], value)}
    trained = {key for key, value in arm.model.named_parameters() if value.requires_grad}
    buffers = {key for key, _ in arm.model.named_buffers()}
    assert changed <= trained | buffers
    for part in settings.trainable:
        assert any(key.startswith(part.partition(".")[0]) for key in changed), part
    for key, parameter in arm.model.named_parameters():
        if getattr(parameter, ROWS_ONLY, False):
            rows = (before[key] != parameter).flatten(1).any(dim=1).nonzero().flatten().tolist()
            assert set(rows) <= set(arm.image_marks), key


@pytest.mark.parametrize("name", ["vl_gpt", "emu", "seed"])
def test_one_space_is_read_and_written(name: str, scenes: SceneTasks) -> None:
    """What an image to draw is made of is what the language model reads of the same image."""
    params = declared(name)
    arm = fresh(params, scenes)
    pixels = torch.from_numpy(scenes.split.pixels(torch.arange(3).numpy()))
    with torch.no_grad():
        drawn = arm.model.image_tokens(pixels)
        read = arm.model.connector(arm.model.encoder(pixels))
        torch.testing.assert_close(drawn, read, rtol=0, atol=0)
        inputs, _ = arm.model.slot_inputs(drawn)
        positions = getattr(arm.model.visual_head, "position", None)
        torch.testing.assert_close(inputs, drawn if positions is None else drawn + positions)


@pytest.mark.parametrize("name", ["flamingo", "llama_adapter_v2", "llava_lora", "llava_qlora", "next_gpt"])
def test_the_language_model_is_itself_at_the_start(name: str, scenes: SceneTasks) -> None:
    """Gates and adapters at zero: logits of plain text are those of the language model alone, bit for bit."""
    params = declared(name)
    arm = fresh(params, scenes)
    collate = arm.collate(tuple(scenes.tasks))
    batch = collate([scenes.sample("text", row, 0) for row in range(3)])
    spec = params.spec("text_decoder", params.text_decoder)
    plain = {key: value for key, value in spec.items() if not key.startswith("lora_")}
    alone = build("text_decoder", plain, len(arm.tokenizer))
    own = {
        key.replace(".base_layer.", "."): value
        for key, value in arm.model.text_decoder.state_dict().items()
        if ".lora_" not in key
    }
    alone.load_state_dict(own)
    with torch.no_grad():
        states = arm.model.states(batch, None)
        expected = alone.eval()(alone.embed(batch.ids), batch.mask)
    assert torch.equal(states[batch.mask], expected[batch.mask])


def test_a_frozen_language_model_says_what_it_said(scenes: SceneTasks) -> None:
    """GILL: but for the rows of the marks, logits of plain text are the same after training, bit for bit."""
    params = declared("gill")
    arm = fresh(params, scenes)
    text = arm.collate(tuple(scenes.tasks))([scenes.sample("text", row, 0) for row in range(3)])

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found = arm.model.text_decoder.logits(arm.model.states(text, None))
        keep = [index for index in range(found.shape[-1]) if index not in arm.image_marks]
        return found[text.mask][:, keep]

    before = logits()
    settings = replace(params.fitted("instruct"), steps=4, warmup=0, weight_decay=0.1)
    module = UnifiedTraining.of(arm, settings)
    optimizers: Any = module.configure_optimizers()
    batch = batch_of(arm, params, scenes)
    for step in range(2):
        module.training_step(batch, step).backward()
        optimizers["optimizer"].step()
    arm.model.eval()
    assert torch.equal(before, logits())


def test_results_are_documented_for_every_system() -> None:
    table = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()
    assert [name for name in names() if f"\n| {name} |" not in table] == []
