"""What every registered part of every role promises."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.registry import ROLES, describe, words

Build = Callable[..., Any]
ROWS = 3
LAYERLESS = [("fusion", "sequence")]  # has no parameters, and nothing to do
PARTS = [(role, word) for role in ROLES for word in words(role) if (role, word) not in LAYERLESS]
every_part = pytest.mark.parametrize(("role", "word"), PARTS, ids=[f"{r}-{w}" for r, w in PARTS])


def every(role: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("word", words(role))


@dataclass
class Subject:
    """A part at work; a fusion works in the blocks of `host`, a language model."""

    role: str
    part: Any
    host: Any = None

    def inputs(self) -> Tensor:
        """The part's main input, one row a sample."""
        match self.role:
            case "encoder":
                return torch.rand(ROWS, 3, 32, 32)
            case "text_decoder":
                return self.part.embed(torch.randint(0, 40, (ROWS, 7))).detach()
            case "fusion":
                return torch.randn(ROWS, 2, 16, self.part.dim_visual)
            case "visual_head":
                return torch.randn(ROWS, self.part.num_slots, 40)
            case _:
                return torch.randn(ROWS, 16, 24)

    def outputs(self, x: Tensor) -> Tensor:
        """What the part makes of its main input and of fixed others, one row a sample (ROWS, ...)."""
        torch.manual_seed(1)  # losses of diffusion draw times and noise
        part = self.part
        match self.role:
            case "encoder" | "connector":
                further = said(part, x) if self.role == "connector" else ()
                if not hasattr(part, "autoencode"):
                    return part(x, *further)
                tokens, loss = part.autoencode(x, *further)
                return torch.cat([tokens.flatten(1), loss[:, None]], 1)
            case "text_decoder":
                return part.logits(part(x))
            case "fusion":
                embeds = torch.randn(ROWS, 6, 32).to(x)
                with part.reading(x, torch.tensor([[-1, 0, 0, 1, 1, 1]] * ROWS)):
                    return self.host(embeds)
            case "visual_head":
                tokens = torch.randn(ROWS, 16, 24).to(x)
                slots, drawn = part.inputs(tokens)
                return torch.cat([slots.flatten(1), part.loss(x, tokens, drawn)[:, None]], 1)
            case "image_decoder":
                return part.loss(x, torch.rand(ROWS, 3, 32, 32).to(x))
        raise AssertionError(self.role)


def said(connector: Any, tokens: Tensor) -> tuple[Tensor, ...]:
    """The question that a connector reads besides, with its mask; nothing for the others."""
    if not getattr(connector, "reads_text", False):
        return ()
    return torch.randn(len(tokens), 5, 40).to(tokens), torch.tensor([[True] * 4 + [False]] * len(tokens))


def prepare(head: Any) -> None:
    codebook = torch.randn_like(head.codebook) if hasattr(head, "codebook") else None
    head.prepare(2 * torch.randn(64, 16, 24) + 1, codebook)


@pytest.fixture
def make(build_small: Build) -> Callable[[str, str], Subject]:
    """Build a part as composition leaves it, a step after the start: gates begin at zero."""

    def subject(role: str, word: str) -> Subject:
        part = build_small(role, word)
        with torch.no_grad():
            for p in part.parameters():
                p.add_(0.02 * torch.randn_like(p))
        if role == "visual_head":
            prepare(part)
        return Subject(role, part, host(part, build_small) if role == "fusion" else None)

    return subject


def host(fusion: Any, build_small: Build) -> Any:
    """A language model to whose blocks the fusion is hooked, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        decoder = build_small("text_decoder", "llama").eval()
    fusion.attach(decoder.layers)
    return decoder


@every_part
def test_a_row_depends_on_that_row_only(role: str, word: str, make: Callable[[str, str], Subject]) -> None:
    subject = make(role, word)
    subject.part.eval()
    x = subject.inputs()
    before = subject.outputs(x)
    x[1] += torch.randn_like(x[1])
    after = subject.outputs(x)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


@every_part
def test_gradients_reach_every_parameter_and_the_input(
    role: str, word: str, make: Callable[[str, str], Subject]
) -> None:
    subject = make(role, word)
    part, x = subject.part, subject.inputs().requires_grad_()
    total = subject.outputs(x).square().sum()
    if role == "text_decoder":
        total = total + part.embed(torch.arange(40)[None]).sum()
    total.backward()
    assert x.grad is not None
    assert x.grad.flatten(1).any(dim=1).all()
    lacking = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    # a pipeline's latents are detached targets: its autoencoder takes no part in the loss
    assert [name for name in lacking if word != "stable_diffusion" or not name.startswith("vae.")] == []


@every_part
def test_state_dict_round_trips_strictly(role: str, word: str, make: Callable[[str, str], Subject]) -> None:
    one, other = make(role, word), make(role, word)
    one.part.eval(), other.part.eval()
    other.part.load_state_dict(one.part.state_dict(), strict=True)
    x = one.inputs()
    assert torch.equal(one.outputs(x), other.outputs(x))


@every_part
def test_dtype_follows_the_weights(role: str, word: str, make: Callable[[str, str], Subject]) -> None:
    subject = make(role, word)
    subject.part.double().eval()
    if subject.host is not None:
        subject.host.double()
    assert subject.outputs(subject.inputs().double()).dtype == torch.float64


@every_part
def test_building_does_not_reseed(role: str, word: str, build_small: Build) -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        build_small(role, word)
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert all(a != b for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize(
    ("role", "word"),
    [part for part in PARTS if "path" not in {p.name for p in describe(*part).parameters}],  # not pretrained
)
def test_random_weights_follow_the_seed(role: str, word: str, build_small: Build) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_small(role, word).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@every_part
def test_nothing_is_frozen(role: str, word: str, build_small: Build) -> None:
    assert all(p.requires_grad for p in build_small(role, word).parameters())


# -- encoders and connectors ---------------------------------------------------------------------------------


@every("encoder")
def test_encoder_declares_what_it_gives(word: str, build_small: Build) -> None:
    encoder = build_small("encoder", word).eval()
    tokens = encoder(torch.rand(2, 3, 32, 32))
    assert tokens.shape == (2, encoder.num_tokens, encoder.dim)
    assert encoder.image_size == 32
    assert encoder.grid is None or encoder.grid[0] * encoder.grid[1] == encoder.num_tokens
    check_autoencoder(encoder, torch.rand(2, 3, 32, 32))


@every("connector")
def test_connector_declares_what_it_gives(word: str, build_small: Build) -> None:
    connector = build_small("connector", word).eval()
    tokens = torch.randn(2, 16, 24)
    given = connector(tokens, *said(connector, tokens))
    assert given.shape == (2, connector.num_tokens, 40)
    if getattr(connector, "per_token", False):
        torch.testing.assert_close(connector(tokens[:, 5:6], 5), given[:, 5:6])
    check_autoencoder(connector, tokens)


def check_autoencoder(part: Any, x: Tensor) -> None:
    """Tokens are the same with and without the part's own loss, and rows of the codebook if there is one."""
    further = said(part, x)
    if hasattr(part, "autoencode"):
        torch.manual_seed(1)
        given = part(x, *further)
        torch.manual_seed(1)
        tokens, loss = part.autoencode(x, *further)
        torch.testing.assert_close(tokens, given)
        assert loss.shape == (len(x),)
    if (codebook := getattr(part, "codebook", None)) is not None:
        tokens = part(x, *further)
        assert codebook.shape[1:] == tokens.shape[2:]
        assert torch.cdist(tokens.flatten(0, 1), codebook).amin(dim=1).max() < 1e-3


# -- text decoders and fusions -------------------------------------------------------------------------------


@every("text_decoder")
def test_text_decoder_declares_what_it_gives(word: str, build_small: Build) -> None:
    decoder = build_small("text_decoder", word)
    seen: list[torch.Size] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    embeds = decoder.embed(torch.tensor([[1, 2, 49]]))
    hidden = decoder(embeds)
    assert embeds.shape == hidden.shape == (1, 3, decoder.dim)
    assert decoder.logits(hidden).shape == (1, 3, decoder.vocab_size)
    assert decoder.vocab_size >= 50
    assert seen == [embeds.shape] * len(decoder.layers)
    assert seen


@every("fusion")
def test_fusion_starts_as_the_language_model_alone(word: str, build_small: Build) -> None:
    fusion = build_small("fusion", word).eval()
    embeds, image = torch.randn(2, 5, 32), torch.tensor([[-1, 0, 0, 1, 1], [-1, -1, -1, 0, 0]])
    alone = host(build_small("fusion", "sequence"), build_small)(embeds)
    decoder = host(fusion, build_small)
    with fusion.reading(torch.randn(2, 2, 16, fusion.dim_visual), image):
        assert torch.equal(decoder(embeds), alone)
    assert fusion.in_sequence or not (fusion.bidirectional or fusion.one_position)
    assert not fusion.in_sequence or fusion.dim_visual == 32


@pytest.mark.parametrize("word", [word for word in words("fusion") if ("fusion", word) not in LAYERLESS])
def test_fusion_reads_no_image_before_it_stands_there(word: str, make: Callable[[str, str], Subject]) -> None:
    subject = make("fusion", word)
    subject.part.eval()
    x = subject.inputs()
    before = subject.outputs(x)
    x[:, 1] += torch.randn_like(x[:, 1])
    after = subject.outputs(x)  # the second image stands from position 3 on
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.isclose(after[:, 3:], before[:, 3:]).all(dim=2).any()


@pytest.mark.parametrize("word", [word for word in words("fusion") if ("fusion", word) not in LAYERLESS])
def test_fusion_leaves_nothing_behind(word: str, make: Callable[[str, str], Subject]) -> None:
    subject = make("fusion", word)
    subject.part.eval()
    embeds = torch.randn(2, 4, 32)
    before = subject.host(embeds)
    read = subject.outputs(subject.inputs())
    assert read.isfinite().all()
    assert torch.equal(subject.host(embeds), before)


# -- visual heads --------------------------------------------------------------------------------------------


class Recurrence:
    """Stands in for a language model: a row's states follow from its inputs and from those that it kept."""

    def __init__(self, rows: int) -> None:
        self.weight = 0.2 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
        self.kept = torch.zeros(rows, 1, 40)
        self.slots = 0

    def __call__(self, embeds: Tensor, keep: bool) -> Tensor:
        assert embeds.shape == (len(self.kept), embeds.shape[1], 40)
        states = torch.tanh((embeds + embeds.mean(dim=1, keepdim=True)) @ self.weight + self.kept)
        if keep:
            self.kept = self.kept + states.mean(dim=1, keepdim=True)
            self.slots += embeds.shape[1]
        return states


@every("visual_head")
def test_visual_head_declares_what_it_gives(word: str, make: Callable[[str, str], Subject]) -> None:
    head = make("visual_head", word).part
    tokens = torch.randn(2, 16, 24)
    for training in (True, False):
        head.train(training)
        slots, drawn = head.inputs(tokens)
        assert slots.shape == (2, head.num_slots, 40)
        assert head.through_decoder or head.loss(torch.randn_like(slots), tokens, drawn).shape == (2,)
    assert {type(head.reads_before), type(head.bidirectional), type(head.through_decoder)} == {bool}


@every("visual_head")
@torch.no_grad()
def test_visual_head_draws_each_row_from_its_own_seed(word: str, make: Callable[[str, str], Subject]) -> None:
    head = make("visual_head", word).part.eval()
    state = torch.randn(3, 1, 40)
    state[2] = state[0]
    run = Recurrence(3)
    drawn = head.draw(state, run, [5, 6, 5])
    torch.manual_seed(1)
    alone = head.draw(state[1:2], Recurrence(1), [6])
    assert drawn.shape == (3, 16, 24)
    assert drawn.isfinite().all()
    assert run.slots <= head.num_slots
    torch.testing.assert_close(drawn[1:2], alone)
    torch.testing.assert_close(drawn[2], drawn[0])


@pytest.mark.parametrize(
    "word",
    [
        word
        for word in words("visual_head")
        if "feedback" in {p.name for p in describe("visual_head", word).parameters}
    ],
)
def test_shared_feedback_stays_its_owners(word: str, build_small: Build) -> None:
    head, reader = build_small("visual_head", word, feedback="shared").eval(), Reader()
    assert head.feedback == "shared"
    with pytest.raises(RuntimeError, match="nothing was shared"):
        head.inputs(torch.randn(2, 16, 24))
    names = head.state_dict().keys()
    head.share(reader)
    assert head.state_dict().keys() == names
    assert list(head.children()) == [module for module in head.children() if module is not reader]
    tokens = torch.randn(2, 16, 24)
    torch.testing.assert_close(head.inputs(tokens)[0], reader(tokens, 0) + head.position)
    whole = copy.deepcopy(nn.ModuleDict({"reader": reader, "head": head}))
    assert whole["head"]._shared is whole["reader"]


class Reader(nn.Module):
    """Stands in for a connector that maps every token by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(24, 40)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        return self.project(tokens)


# -- image decoders ------------------------------------------------------------------------------------------


@every("image_decoder")
def test_image_decoder_samples_pixels_by_the_generator(word: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", word).eval()
    tokens = torch.randn(2, 16, 24)
    assert decoder.loss(tokens, torch.rand(2, 3, 32, 32)).shape == (2,)
    torch.manual_seed(5)
    first = decoder.sample(tokens, torch.Generator().manual_seed(3))
    torch.manual_seed(6)
    again = decoder.sample(tokens, torch.Generator().manual_seed(3))
    assert first.shape == (2, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)


@every("image_decoder")
def test_image_decoder_learns_one_batch(word: str, build_small: Build) -> None:
    if word == "stable_diffusion":
        pytest.skip("a random autoencoder gives no pixels back, whatever its pipeline learns")
    decoder = build_small("image_decoder", word)
    tokens = torch.randn(8, 16, 24)
    colours = tokens[..., :3].sigmoid().transpose(1, 2).unflatten(2, (4, 4))  # (B, 3, 4, 4)
    pixels = nn.functional.interpolate(colours, scale_factor=8)  # a token is the colour of its patch
    optimiser = torch.optim.Adam(decoder.parameters(), 4e-3)
    for _ in range(80):
        optimiser.zero_grad()
        decoder.loss(tokens, pixels).mean().backward()
        optimiser.step()
    drawn = decoder.eval().sample(tokens, torch.Generator().manual_seed(0))
    assert (drawn - pixels).square().mean() < 0.6 * (pixels.mean() - pixels).square().mean()
