"""Layouts change nothing but speed: samples get the losses that they have alone, and see no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.contracts import Seen
from lab.config import Params
from lab.graph.context import world_of
from lab.graph.small import small_params
from lab.graph.system import find, names, read_system
from lab.models.arm import Arm
from lab.models.unified import UnifiedModel
from lab.samples.batch import Batch
from lab.samples.layout import lay_out
from lab.samples.mixture import Mixture
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import read_split, write_world
from tests.systems import fresh

Word = Literal["padded", "buckets", "packed"]
LAYOUTS: tuple[Word, ...] = ("padded", "buckets", "packed")
# every fusion and connector that the systems leave out, and families of language models
BESIDE: dict[str, tuple[str, ...]] = {
    "one position": ("llava", "settings.fusion.sequence.bidirectional=true", "fusion.one_position=true"),
    "windowed": ("llava", "text_decoder=hf", "text_decoder.config=WINDOWED"),
    "ALiBi": ("llava", "text_decoder=hf", "text_decoder.config=ALIBI"),
    "learned positions": ("llava", "text_decoder=hf", "text_decoder.config=LEARNED"),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "WINDOWED": {
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "sliding_window": 16,
    },
    "ALIBI": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "LEARNED": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2},
}


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> SceneTasks:
    """A few scenes of a world with places in words, for all tasks."""
    folder = tmp_path_factory.mktemp("located")
    params = small_params(read_system(find("llava")), find("llava"), [])
    world = replace(world_of(params), variants=2, locations=8)
    write_world(folder, world, {"train": 40, "validation": 10, "test": 10}, seed=0)
    return SceneTasks(read_split(folder, world, "train"), turns=2)


def made(name: str, scenes: SceneTasks) -> Arm:
    """A small system with fresh parts, closed gates opened, nothing random but what heads draw."""
    system, *overrides = BESIDE.get(name, (name,))
    params: Params = small_params(
        read_system(find(system)), find(system), [one for one in overrides if "config=" not in one]
    )
    for one in overrides:
        if "config=" in one:
            params.settings["text_decoder"]["hf"] = {"config": FAMILIES[one.partition("=")[2]]}
    arm = fresh(params, scenes)
    with torch.no_grad():
        for key, parameter in arm.model.fusion.named_parameters():  # type: ignore[attr-defined]
            if "gate" in key:
                parameter.fill_(0.5)
    return arm


def batch_of(arm: Arm, scenes: SceneTasks, size: int = 8) -> Batch:
    """Samples of unlike length; each has a task of its own, so that losses by task are losses by sample."""
    known = ["caption", "vqa", "text", "inventory", "ground"]
    if arm.model.visual_head is not None:
        known[2:4] = ["text_to_image", "edit", "interleaved"]
    data = Mixture(scenes.sources(), dict.fromkeys(known, 1.0), size, seed=0)
    samples = [replace(data[row], task=str(row)) for row in range(size)]
    return arm.collate(tuple(map(str, range(size))))(samples)


def sums(model: UnifiedModel, batch: Batch) -> Tensor:
    """(2, B) summed losses of each sample."""
    torch.manual_seed(0)  # what heads draw
    losses = model(batch)
    return torch.stack([losses.text_sum, losses.image_sum])


@pytest.mark.parametrize("name", [*names(), *BESIDE])
@torch.no_grad()
def test_every_layout_has_the_losses_of_every_sample(name: str, located: SceneTasks) -> None:
    arm = made(name, located)
    batch = batch_of(arm, located)
    expected = sums(arm.model, batch)
    assert (expected[0] > 0).all()
    packs = arm.model.text_decoder.packs  # type: ignore[attr-defined]
    assert packs == (name not in ("windowed", "ALiBi"))
    for word in LAYOUTS[: 3 if packs else 2]:
        for sparing in (False, True):
            laid = lay_out(batch, word, 96, sparing)
            assert laid.layout is not None
            torch.testing.assert_close(sums(arm.model, laid), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["llava", "flamingo", "llama_adapter_v2", "transfusion", "metamorph", "learned positions"]
)
def test_states_that_no_loss_reads_are_spared(name: str, located: SceneTasks) -> None:
    """Gradients are those of all states; drawn images are predicted at their slots or before them."""
    arm = made(name, located)
    batch = batch_of(arm, located)
    grads = []
    for sparing in (False, True):
        arm.model.zero_grad()
        torch.manual_seed(0)  # what heads draw
        losses = arm.model(lay_out(batch, "buckets", 96, sparing))
        (losses.text + losses.image).backward()
        grads.append({name: p.grad for name, p in arm.model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llava", "flamingo", "llama_adapter_v2", "transfusion", "git"])
def test_a_packed_sample_sees_no_other(name: str, located: SceneTasks) -> None:
    """Neither gradients nor changes of words and pixels cross from one sample to the next."""
    arm = made(name, located)
    batch = batch_of(arm, located)
    laid = lay_out(batch, "packed", 10_000)
    assert laid.layout is not None
    assert laid.layout.rows[0].place.shape[0] == 1  # all in one row
    model, middle = arm.model, 3
    embeds = model.text_decoder.embed(laid.ids).detach().requires_grad_()
    model.text_decoder.embed = lambda ids: embeds if ids is laid.ids else None  # type: ignore[method-assign]
    torch.manual_seed(0)
    drawn, _ = model.slot_inputs(model.targets(laid))
    before = model.states(laid, None if drawn is None else drawn.detach())
    (gradient,) = torch.autograd.grad(before[middle][laid.mask[middle]].sum(), embeds)
    others = torch.arange(len(batch)) != middle
    assert gradient[middle].abs().sum() > 0
    assert (gradient[others] == 0).all()
    with torch.no_grad():
        embeds[middle] += 1.0
        own = batch.image[middle].amax() >= 0
        pixels = laid.pixels_read.clone()
        pixels[laid.places.images[middle][: int(own)]] *= 0.5
        torch.manual_seed(0)
        after = model.states(replace(laid, pixels_read=pixels), drawn)
    assert torch.equal(after[others][batch.mask[others]], before[others][batch.mask[others]])
    assert not torch.equal(after[middle], before[middle])


def test_the_rule_of_flex_attention_is_that_of_the_mask() -> None:
    from torch.nn.attention.flex_attention import create_mask

    from components.layers.causal_lm import _sparse

    torch.manual_seed(0)
    sample = torch.tensor([[0] * 9 + [1] * 12 + [-1] * 3, [2] * 20 + [3] * 4])
    block = torch.zeros_like(sample)
    block[0, 3:6] = block[0, 12:15] = block[1, 21:24] = 1
    block[0, 16:19] = 2
    for seen in (Seen(sample), Seen(sample, block)):
        sparse = _sparse(seen)
        found = create_mask(sparse.mask_mod, 2, 1, 24, 24, device="cpu")[:, 0]
        assert torch.equal(found, seen.dense())


@pytest.mark.parametrize("word", LAYOUTS)
def test_text_alone_costs_no_image_work(word: Word, located: SceneTasks) -> None:
    """The encoder runs once a step, on the images that there are; not at all where there are none."""
    arm = made("flamingo", located)
    seen: list[int] = []
    arm.model.encoder.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda module, args: seen.append(len(args[0]))
    )
    collate = arm.collate(("text", "vqa"))
    text = [located.sample("text", row, 0) for row in range(4)]
    arm.model(lay_out(collate(text), word, 96))
    assert seen == []
    arm.model(lay_out(collate([*text, located.sample("vqa", 0, 0)]), word, 96))
    assert seen == [1]


class Asked(TorchDispatchMode):
    """Notes operations whose result the host has to wait for."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.WAITS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", names())
def test_nothing_in_a_step_waits_for_the_device(name: str, located: SceneTasks) -> None:
    """Forward and backward pass in the layout that a GPU takes."""
    from lab.training.modules import UnifiedTraining

    arm = made(name, located)
    arm.model.requires_grad_(True)
    batch = batch_of(arm, located)
    batch = lay_out(batch, "packed", 96)
    rates = {"": 1e-3}
    module = UnifiedTraining(
        arm.model,
        ["connector"],
        1.0,
        learning_rates={"connector": 1e-3, **rates},
        steps=2,
        warmup=0,
        weight_decay=0.0,
    )
    with Asked() as asked:
        module.training_step(batch, 0).backward()
    assert asked.found == []


def test_a_wait_would_be_found(located: SceneTasks) -> None:
    """With its own mask transformers looks whether it needs one."""
    arm = made("llava", located)
    with Asked() as asked:
        arm.model(batch_of(arm, located))
    assert asked.found
