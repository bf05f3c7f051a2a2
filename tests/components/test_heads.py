"""Visual heads: what each loss compares, and that drawing goes the way training went."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.diffusion_process import renoise, times, weights
from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]
J, N, D, WIDTH, CODES = 3, 16, 40, 24, 64  # images, tokens, widths and codes of the heads here

TOKENS = 2 * torch.randn(J, N, WIDTH, generator=torch.Generator().manual_seed(3)) + 1
CODEBOOK = torch.randn(CODES, WIDTH, generator=torch.Generator().manual_seed(4))


def head_of(word: str, dim: int = D, **settings: Any) -> Any:
    """A head in eval mode that has seen a sample of tokens."""
    settings = {"codes": CODES, **settings} if word == "codebook" else settings
    head = build("visual_head", {"name": word, **settings}, dim, WIDTH, N).eval()
    head.prepare(TOKENS, CODEBOOK)
    return head


def leave_zero(part: nn.Module) -> None:
    """Let layers that start at zero leave their start."""
    with torch.no_grad():
        for p in part.parameters():
            p.add_(0.1 * torch.randn_like(p))


# -- one token after the other ---------------------------------------------------------------------------


def oracle(word: str, **settings: Any) -> tuple[Any, Tensor, Tensor]:
    """A head whose predictions are the states, with the tokens it should draw and their states."""
    if word == "codebook":
        head = head_of("codebook", CODES, temperature=0.0, **settings)
        head.score = nn.Identity()
        tokens = CODEBOOK[torch.randint(CODES, (J, N))]
        return head, tokens, 50.0 * functional.one_hot(head.ids(tokens), CODES)
    head = head_of("regression", WIDTH, **settings)
    head.predict = nn.Identity()
    tokens = functional.normalize(TOKENS, dim=-1) if head.normalise else TOKENS
    return head, tokens, head.standardise(tokens)


ORACLES = [
    ("regression", {}),
    ("regression", {"loss": "cosine"}),
    ("regression", {"loss": "cosine", "normalise": True}),
    ("codebook", {}),
]


@pytest.mark.parametrize(("word", "settings"), ORACLES)
def test_the_state_before_a_token_predicts_it(word: str, settings: dict[str, Any]) -> None:
    head, tokens, states = oracle(word, **settings)
    assert head.reads_before
    torch.testing.assert_close(head.loss(states, tokens), torch.zeros(J), atol=1e-5, rtol=0)
    assert (head.loss(states.roll(1, dims=1), tokens) > 0.1).all()  # one position off


@pytest.mark.parametrize("feedback", ["own", "shared"])
@pytest.mark.parametrize(("word", "settings"), ORACLES)
def test_drawing_feeds_back_what_training_fed(word: str, settings: dict[str, Any], feedback: str) -> None:
    head, tokens, states = oracle(word, feedback=feedback, **settings)
    place = torch.randn(N, states.shape[2])
    head.share(lambda tokens, first: tokens[..., :1] * place[first : first + tokens.shape[1]])
    fed: list[Tensor] = []

    def run(embeds: Tensor, keep: bool) -> Tensor:
        assert keep
        fed.append(embeds)
        return states[:, len(fed) : len(fed) + 1]

    drawn = head.draw(states[:, :1], run, [0] * J)
    torch.testing.assert_close(drawn, tokens)
    taught, nothing = head.inputs(tokens)
    assert nothing is None
    torch.testing.assert_close(
        torch.cat(fed, dim=1), taught[:, :-1]
    )  # nothing is left to predict from the last


@pytest.mark.parametrize("word", ["regression", "codebook", "diffusion"])
def test_in_training_fed_back_tokens_are_hidden(word: str) -> None:
    torch.manual_seed(0)
    head = head_of(word, hide=1.0, positions=False).train()
    nn.init.normal_(head.hidden)
    assert (head.inputs(TOKENS)[0] == head.hidden).all()
    plain = head_of(word, hide=0.0, positions=False, **({} if word == "codebook" else {"noise": 0.0}))
    assert not {"hidden", "position"} & plain.state_dict().keys()
    assert torch.equal(plain.train().inputs(TOKENS)[0], plain.eval().inputs(TOKENS)[0])


# -- regression ------------------------------------------------------------------------------------------


def test_cosine_is_0_for_the_direction_1_at_random_and_2_for_the_opposite() -> None:
    head, _, states = oracle("regression", loss="cosine", normalise=True)
    for factor in (0.1, 7.0):
        torch.testing.assert_close(head.loss(factor * states, TOKENS), torch.zeros(J), atol=1e-5, rtol=0)
        torch.testing.assert_close(head.loss(-factor * states, TOKENS), torch.full((J,), 2.0))
    chance = head.loss(torch.randn(500, N, WIDTH), torch.randn(500, N, WIDTH))
    assert chance.mean().item() == pytest.approx(1, abs=0.02)


def test_normalised_predictions_have_length_1_and_no_other_scale() -> None:
    head = head_of("regression", loss="cosine", normalise=True)
    predicted = head(torch.randn(J, N, D))
    torch.testing.assert_close(predicted.norm(dim=-1), torch.ones(J, N))
    assert not head.mean.any()
    assert (head.deviation == 1).all()


def test_predictions_of_zero_are_the_mean_token() -> None:
    head = head_of("regression")
    head.predict = nn.Linear(D, WIDTH)
    nn.init.zeros_(head.predict.weight), nn.init.zeros_(head.predict.bias)
    torch.testing.assert_close(head(torch.randn(1, 2, D))[0, 0], TOKENS.flatten(0, 1).mean(dim=0))
    # standardised targets have a mean square of 1
    assert head.loss(torch.randn(J, N, D), TOKENS).mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mlp_ratio": 1.0}, D * D + D + D * WIDTH + WIDTH),  # MetaMorph
        ({"depth": 1}, D * WIDTH + WIDTH),  # VL-GPT
        ({"depth": 1, "bias": False}, D * WIDTH),  # Emu
    ],
)
def test_regression_as_published(settings: dict[str, Any], expected: int) -> None:
    plain = {"feedback": "shared", "hide": 0.0, "noise": 0.0, "positions": False, "standardised": False}
    head = head_of("regression", **plain, **settings)
    assert sum(p.numel() for p in head.parameters()) == expected
    head.share(lambda tokens, first: tokens)  # one space in and out
    assert torch.equal(head.train().inputs(TOKENS)[0], TOKENS)


# -- codebook --------------------------------------------------------------------------------------------


def test_codes_round_trip() -> None:
    head = head_of("codebook")
    ids = torch.arange(CODES).view(4, N)
    assert torch.equal(head.ids(CODEBOOK[ids]), ids)
    assert torch.equal(head.ids(CODEBOOK[ids] + 1e-3), ids)


def test_codebook_loss_is_cross_entropy_and_weighs_the_partition_function() -> None:
    head, regular = head_of("codebook"), head_of("codebook", z_loss=0.5)
    regular.load_state_dict(head.state_dict())
    states = torch.randn(J, N, D)
    logits = head.score(states)
    log = logits.log_softmax(dim=-1).gather(2, head.ids(TOKENS).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(head.loss(states, TOKENS), -log.mean(dim=1))
    weighed = 0.5 * logits.logsumexp(dim=-1).square().mean(dim=1)
    torch.testing.assert_close(regular.loss(states, TOKENS), weighed - log.mean(dim=1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"temperature": 0.0}, [0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_codes_are_sampled_as_scored(settings: dict[str, Any], expected: list[float]) -> None:
    head = build("visual_head", {"name": "codebook", "codes": 4, **settings}, 4, WIDTH, 1).eval()
    head.prepare(TOKENS, CODEBOOK[:4])
    head.score = nn.Identity()
    state = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(3000, 1, 4)
    drawn = head.draw(state, lambda *_: pytest.fail("one token needs no further run"), range(3000))
    shares = head.ids(drawn).flatten().bincount(minlength=4) / 3000
    torch.testing.assert_close(shares, torch.tensor(expected), atol=0.03, rtol=0)


def test_a_codebook_of_another_size_is_refused() -> None:
    head = head_of("codebook")
    with pytest.raises(ValueError, match=r"expected a codebook of 64 x 24 .*, not of 32 x 24"):
        head.prepare(TOKENS, CODEBOOK[:32])
    with pytest.raises(ValueError, match="needs an encoder or a connector with a codebook"):
        head.prepare(TOKENS, None)
    with pytest.raises(LabError, match="top_k 65 is not between 0 and codes 64"):
        head_of("codebook", top_k=65)


# -- per-token diffusion ---------------------------------------------------------------------------------


def test_the_denoiser_sees_one_token_and_its_state() -> None:
    head = head_of("diffusion")
    leave_zero(head.denoiser)
    states = torch.randn(1, N, D, requires_grad=True)
    clean = torch.randn(1, 1, N, WIDTH, requires_grad=True)
    time, noise = torch.rand(1, 1, N, 1), torch.randn(1, 1, N, WIDTH)
    head.error(states, clean, time, noise)[0, 0, 5].backward()
    for x in (states.grad, clean.grad):
        reached = x.view(N, -1).any(dim=1)
        assert reached[5]
        assert reached.sum() == 1


def test_the_state_gets_the_mean_gradient_of_its_copies() -> None:
    head = head_of("diffusion", copies=4)
    leave_zero(head.denoiser)
    states = torch.randn(J, N, D, requires_grad=True)
    drawn: list[tuple[Tensor, ...]] = []
    error = head.error

    def spy(states: Tensor, *noised: Tensor) -> Tensor:
        drawn.append(noised)
        return error(states, *noised)

    head.error = spy
    (whole,) = torch.autograd.grad(head.loss(states, TOKENS).sum(), states)
    clean, time, noise = drawn[0]
    assert time.shape == (4, J, N, 1)
    assert len(time.unique()) == time.numel()  # each copy of each token has a time and noise of its own
    assert len(noise.unique()) == noise.numel()
    alone = [
        torch.autograd.grad(
            error(states, clean[i : i + 1], time[i : i + 1], noise[i : i + 1]).sum() / N, states
        )
        for i in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack([grad for (grad,) in alone]).mean(dim=0))


@pytest.mark.parametrize("predicts", ["epsilon", "v"])
def test_a_state_that_says_nothing_gives_the_marginal(predicts: str) -> None:
    def sample(count: int) -> Tensor:
        side = 2.0 * torch.randint(0, 2, (count, 1, 1)) - 1
        return torch.cat(
            [2 * side + 0.3 * torch.randn(count, 1, 1), 5 + 0.5 * torch.randn(count, 1, 1)], dim=2
        )

    spec = {"name": "diffusion", "width": 48, "predicts": predicts}
    head = build("visual_head", spec, 8, 2, 1)
    head.prepare(sample(4000), None)
    state = torch.zeros(1, 1, 8)
    optimiser = torch.optim.Adam(head.parameters(), 5e-3)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 200)
        optimiser.zero_grad()
        head.loss(state.expand(128, -1, -1), sample(128)).mean().backward()
        optimiser.step()
    with torch.no_grad():
        drawn = head.eval().draw(state.expand(1500, -1, -1), lambda *_: state, range(1500))[:, 0]
    two, one = drawn.unbind(dim=1)
    assert one.mean().item() == pytest.approx(5, abs=0.1)
    assert one.std().item() == pytest.approx(0.5, abs=0.1)
    assert (two > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert two.abs().mean().item() == pytest.approx(2, abs=0.15)  # a regression would say 0
    assert (two.abs() < 1).float().mean() < 0.05


@pytest.mark.parametrize("predicts", ["epsilon", "v"])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_perfect_denoiser_draws_the_token(predicts: str, steps: int) -> None:
    head = head_of("diffusion", predicts=predicts, steps=steps)
    clean = head.standardise(TOKENS)[:, :1]

    def denoiser(noisy: Tensor, time: Tensor, state: Tensor) -> Tensor:
        keep, blend = weights("cosine", time)
        noise = (noisy - keep * clean) / blend
        return noise if predicts == "epsilon" else keep * noise - blend * clean

    head.denoiser = _Module(denoiser)
    drawn = head.draw(torch.zeros(J, 1, D), lambda *_: torch.zeros(J, 1, D), range(J))
    torch.testing.assert_close(drawn, TOKENS[:, :1].expand(-1, N, -1), atol=1e-4, rtol=0)


def test_renewed_noise_keeps_the_amount_of_noise() -> None:
    one, zero = torch.ones(()), torch.zeros(())
    points = [weights("cosine", time) for time in times("epsilon", 7)]
    for now, after in pairwise(points):
        kept = renoise(zero, now[1], now, after, zero)
        renewed = renoise(zero, zero, now, after, one)
        torch.testing.assert_close(kept.square() + renewed.square(), after[1].square())
        torch.testing.assert_close(renoise(one, now[0], now, after, zero), after[0])


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


# -- queries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapper", ["linear", "mlp", "encoder", "transformer"])
def test_queries_are_read_once_and_mapped(mapper: str) -> None:
    head = head_of("queries", mapper=mapper)
    assert not head.reads_before
    assert not head.bidirectional
    states = torch.randn(J, 16, D)
    runs: list[Tensor] = []

    def run(embeds: Tensor, keep: bool) -> Tensor:
        assert keep
        runs.append(embeds)
        return states

    drawn = head.draw(torch.randn(J, 1, D), run, [0] * J)
    assert len(runs) == 1
    assert torch.equal(runs[0], head.inputs(TOKENS)[0])
    assert torch.equal(drawn, head(states))
    assert drawn.shape == TOKENS.shape


def test_the_state_at_a_query_is_mapped_not_the_one_before(build_small: Build) -> None:
    llama = build_small("text_decoder", "llama").eval()
    head = head_of("queries", llama.dim, mapper="linear", add_input=False)
    prompt = torch.randn(1, 4, llama.dim)

    def draw() -> Tensor:
        return head.draw(prompt, lambda embeds, _: llama(torch.cat([prompt, embeds], dim=1))[:, 4:], [0])

    before = draw()
    with torch.no_grad():
        head.queries[5] += torch.randn(llama.dim)
    changed = ~torch.isclose(draw(), before, atol=1e-5).all(dim=2)[0]
    assert changed.tolist() == [False] * 5 + [True] * 11


def test_any_number_of_queries_makes_all_tokens() -> None:
    head = head_of("queries", num_queries=5, mapper="transformer")
    assert head.inputs(TOKENS)[0].shape == (J, 5, D)
    assert head(torch.randn(J, 5, D)).shape == TOKENS.shape
    with pytest.raises(LabError, match="num_queries 5 is not the number of visual tokens 16"):
        head_of("queries", num_queries=5, mapper="linear")


def test_the_norm_is_not_squared() -> None:
    settings = {"mapper": "linear", "add_input": False, "standardised": False}
    head = head_of("queries", WIDTH, loss="norm", **settings)
    head.mapper = nn.Identity()
    off = TOKENS.clone()
    off[:, 3, :2] += torch.tensor([3.0, 4.0])  # 5 away
    torch.testing.assert_close(head.loss(off, TOKENS), torch.full((J,), 5 / N))
    squared = head_of("queries", WIDTH, loss="mse", **settings)
    squared.mapper = nn.Identity()
    torch.testing.assert_close(squared.loss(off, TOKENS), torch.full((J,), 25 / (N * WIDTH)))


def test_input_embeddings_are_added_to_the_states() -> None:
    head = head_of("queries", WIDTH, mapper="linear", standardised=False)
    head.mapper = nn.Identity()
    torch.testing.assert_close(head(torch.zeros(2, 16, WIDTH)), head.queries.expand(2, -1, -1))


def test_the_image_decoders_loss_reaches_the_queries_through_a_frozen_decoder(build_small: Build) -> None:
    head = head_of("queries", mapper="linear", loss="decoder")
    decoder = build_small("image_decoder", "diffusion").requires_grad_(False)
    assert head.through_decoder
    states = head.inputs(TOKENS)[0]  # a language model that changes nothing
    decoder.loss(head(states), torch.rand(J, 3, 32, 32)).mean().backward()
    assert head.queries.grad.any(dim=1).all()
    assert all(p.grad is None for p in decoder.parameters())
    with pytest.raises(RuntimeError, match="the image decoder's"):
        head.loss(states, TOKENS)


# -- diffusion within the language model -----------------------------------------------------------------


@pytest.mark.parametrize("process", ["flow", "epsilon"])
def test_slots_hold_noised_tokens_and_the_loss_asks_for_what_was_added(process: str) -> None:
    head = head_of("flow", WIDTH, process=process, positions=False)
    head.read, head.time = nn.Identity(), _Module(torch.zeros_like)
    noisy, (noise, time) = head.inputs(TOKENS)
    clean = head.standardise(TOKENS)
    assert time.shape == (J, 1, 1)  # an image has one time
    assert len(time.unique()) == J
    head.predict = nn.Identity()
    added = noise - clean if process == "flow" else noise
    torch.testing.assert_close(head.loss(added, TOKENS, (noise, time)), torch.zeros(J))
    if process == "flow":
        torch.testing.assert_close(noisy - time * added, clean)


@pytest.mark.parametrize("process", ["flow", "epsilon"])
@pytest.mark.parametrize("steps", [1, 6])
def test_a_perfect_language_model_draws_the_tokens_from_any_noise(process: str, steps: int) -> None:
    head = head_of("flow", WIDTH, process=process, steps=steps, positions=False)
    clean, now = head.standardise(TOKENS), iter(times(head.predicts, steps))
    head.read, head.time, head.predict = nn.Identity(), _Module(torch.zeros_like), nn.Identity()

    def run(noisy: Tensor, keep: bool) -> Tensor:
        assert not keep
        keep_clean, blend = weights(head.path, next(now))
        noise = (noisy - keep_clean * clean) / blend
        return noise - clean if process == "flow" else noise

    torch.testing.assert_close(head.draw(torch.zeros(J, 1, WIDTH), run, range(J)), TOKENS, atol=1e-4, rtol=0)


def test_the_time_changes_the_images_states_and_none_before(build_small: Build) -> None:
    llama = build_small("text_decoder", "llama").eval()
    head = head_of("flow", llama.dim)
    text, noisy = torch.randn(1, 4, llama.dim), torch.randn(1, N, WIDTH)
    image = torch.arange(4 + N) >= 4
    seen = torch.ones(4 + N, 4 + N, dtype=torch.bool).tril() | (image & image.unsqueeze(1))

    def states(time: float, noisy: Tensor) -> Tensor:
        slots = head.embed(noisy, torch.full((1, 1, 1), time))
        return llama(torch.cat([text, slots], dim=1), seen.unsqueeze(0))[0]

    with torch.no_grad():
        one, other = states(0.3, noisy), states(0.7, noisy)
        torch.testing.assert_close(one[:4], other[:4])
        assert not torch.isclose(one[4:], other[4:], atol=1e-4).all(dim=1).any()
        noisy[0, -1] += 1.0  # the last token reaches the first slot
        assert not torch.isclose(states(0.7, noisy)[4:], other[4:], atol=1e-4).all(dim=1).any()
