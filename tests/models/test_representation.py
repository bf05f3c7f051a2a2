"""The first stage of BLIP-2: what sees what, which pairs are right, and what the next stage takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.errors import LabError
from lab.models.representation import RepresentationModel, _draw, compare
from lab.registry import build

VOCABULARY = 30
CAPTIONS = torch.tensor([[5, 6, 7, 8], [9, 6, 11, 0], [5, 6, 7, 8], [12, 13, 0, 0], [14, 5, 6, 29]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def q_former(**settings: Any) -> Any:
    chosen = {"name": "q_former", "num_queries": 6, "dim": 32, "depth": 4, **settings}
    return build("connector", chosen, 24, 40, 16)


def make(**settings: Any) -> RepresentationModel:
    encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, 32)
    model = RepresentationModel(encoder, q_former(**settings), VOCABULARY, dim=16)
    for name, parameter in model.named_parameters():  # weights at which everything has a say
        if "norm" not in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    for block, mlp in zip(model.connector.blocks[-len(model.text_mlps) :], model.text_mlps, strict=True):
        mlp.mlp.load_state_dict(block.mlp.state_dict())
    return model


@pytest.fixture
def model() -> RepresentationModel:
    return make()


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(5, 3, 32, 32)


def test_queries_alone_attend_to_the_image_and_in_every_second_block(
    model: RepresentationModel, pixels: Tensor
) -> None:
    assert [block.cross is not None for block in model.connector.blocks] == [True, False, True, False]
    for block in model.connector.blocks:
        if block.cross is not None:
            nn.init.zeros_(block.cross.out.weight)
            nn.init.zeros_(block.cross.out.bias)
    first, second = model.embed_image(model.encoder(pixels))[:2]
    assert torch.equal(first, second)  # with these blocks shut, nothing of the image comes in


def test_text_to_compare_sees_no_image_and_image_no_text(model: RepresentationModel, pixels: Tensor) -> None:
    tokens = model.encoder(pixels)
    seen: list[tuple[Any, ...]] = []
    model.connector.blocks[0].cross.register_forward_hook(lambda *args: seen.append(args[1]))
    text = model.embed_text(CAPTIONS)
    assert not seen  # cross-attention does not run, so that no image can matter
    alone = torch.cat([model.embed_text(row[None][:, : (row != 0).sum()]) for row in CAPTIONS])
    torch.testing.assert_close(text, alone, atol=1e-6, rtol=0)  # nor do other rows and padding
    states, _ = model.generate(tokens, CAPTIONS)
    others, _ = model.generate(tokens, CAPTIONS.roll(1, 0))
    assert torch.equal(states, others)
    image = F.normalize(model.image_projection(states), dim=-1)
    torch.testing.assert_close(image, model.embed_image(tokens), atol=1e-6, rtol=0)


def test_words_are_predicted_from_the_image_and_the_words_before(
    model: RepresentationModel, pixels: Tensor
) -> None:
    tokens = model.encoder(pixels)
    _, before = model.generate(tokens, CAPTIONS)
    changed = CAPTIONS.clone()
    changed[:, 2] = 20
    _, after = model.generate(tokens, changed)
    assert before.shape == (5, 4, VOCABULARY)
    assert torch.equal(before[:, :3], after[:, :3])  # the one at 2 is predicted from those at 0 and 1
    assert not torch.isclose(before[:, 3], after[:, 3]).all(dim=1).any()
    _, other = model.generate(tokens.roll(1, 0), CAPTIONS)
    assert not torch.isclose(before, other).all(dim=2).any()


def test_in_matching_all_see_all_but_padding(model: RepresentationModel, pixels: Tensor) -> None:
    tokens = model.encoder(pixels)
    before = model.match(tokens, CAPTIONS)
    torch.testing.assert_close(model.match(tokens, F.pad(CAPTIONS, (0, 3))), before, atol=1e-6, rtol=0)
    changed = CAPTIONS.clone()
    changed[0, 3] = 21
    assert not torch.allclose(model.match(tokens, changed)[0], before[0])


def test_text_mlps_start_as_copies_and_diverge(pixels: Tensor) -> None:
    encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, 32)
    model = RepresentationModel(encoder, q_former(), VOCABULARY)
    pairs = [
        (block.mlp, text.mlp) for block, text in zip(model.connector.blocks, model.text_mlps, strict=True)
    ]
    assert all(torch.equal(mine[0].weight, text[0].weight) for mine, text in pairs)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(pixels, CAPTIONS).total.backward()
    optimiser.step()
    assert not any(torch.equal(mine[0].weight, text[0].weight) for mine, text in pairs)


def test_matching_is_given_the_pairs_and_two_negatives_for_each(
    model: RepresentationModel, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = model.encoder(pixels)
    asked: list[tuple[Tensor, Tensor]] = []
    match = model.match
    monkeypatch.setattr(model, "match", lambda *pairs: asked.append(pairs) or match(*pairs))
    same = (CAPTIONS[:, None] == CAPTIONS[None]).all(dim=2)
    drawn = set()
    for _ in range(40):
        logits, labels = model.match_hard(tokens, CAPTIONS, torch.eye(5) * 9, same)
        assert logits.shape == (15, 2)
        assert labels.tolist() == [1] * 5 + [0] * 10
        images, texts = asked.pop()
        image = (images[:, None] == tokens[None]).flatten(2).all(dim=2).int().argmax(dim=1)
        # of rows 0 and 2, whose captions are equal, neither is a negative of the other
        text = (texts[:, None] == CAPTIONS[None]).all(dim=2)
        assert text[range(5), image[:5]].all()
        assert not text[range(5, 15), image[5:]].any()
        assert torch.equal(texts[5:10], CAPTIONS)  # images like each caption, then captions like each image
        assert torch.equal(images[10:], tokens)
        drawn |= {(int(i), tuple(t.tolist())) for i, t in zip(image[5:], texts[5:], strict=True)}
    assert len(drawn) == 5 * 3  # each image with each of the four captions but its own


def test_negatives_are_the_similar_ones(model: RepresentationModel) -> None:
    similarity = torch.zeros(400, 4)
    similarity[:, 2] = 3.0
    counts = _draw(similarity, torch.tensor([True, False, False, False]).expand(400, -1)).bincount()
    assert counts[0] == 0
    share = similarity[0].softmax(dim=0)[1:] / similarity[0].softmax(dim=0)[1:].sum()
    torch.testing.assert_close(counts[1:] / 400, share, atol=0.08, rtol=0)


def test_similarity_is_that_of_one_query(model: RepresentationModel, pixels: Tensor) -> None:
    image = model.embed_image(model.encoder(pixels)).detach().requires_grad_()
    text = model.embed_text(CAPTIONS)
    similarity = compare(image, text)
    assert similarity.shape == (5, 5)
    expected = (image[1] @ text[3]).max()
    torch.testing.assert_close(similarity[1, 3], expected)
    similarity[1, 3].backward()
    assert image.grad is not None
    assert image.grad.any(dim=2).sum(dim=1).tolist() == [0, 1, 0, 0, 0]


def test_contrastive_loss_is_smoothed_cross_entropy_with_several_right_answers(
    model: RepresentationModel,
) -> None:
    logits = torch.randn(4, 4)
    one = torch.eye(4, dtype=torch.bool)
    expected = F.cross_entropy(logits, torch.arange(4), label_smoothing=0.1)
    torch.testing.assert_close(model._contrast(logits, one), expected)
    model.smoothing = 0.0
    assert float(model._contrast(logits, torch.ones(4, 4, dtype=torch.bool))) == pytest.approx(0, abs=1e-6)


def test_captions_that_are_all_equal_have_no_negatives(model: RepresentationModel, pixels: Tensor) -> None:
    model.smoothing = 0.0
    losses = model(pixels, CAPTIONS[:1].expand(5, -1))
    assert float(losses.contrastive.detach()) == pytest.approx(0, abs=1e-5)
    assert losses.total.isfinite()
    assert model(pixels[:1], CAPTIONS[:1]).total.isfinite()


def test_generation_counts_words_only(model: RepresentationModel, pixels: Tensor) -> None:
    tokens = model.encoder(pixels)
    _, logits = model.generate(tokens, CAPTIONS)
    real = CAPTIONS != 0
    expected = -logits.log_softmax(dim=2).gather(2, CAPTIONS[..., None]).squeeze(2)[real].mean()
    torch.testing.assert_close(model(pixels, CAPTIONS).generation, expected)
    padded = model(pixels, F.pad(CAPTIONS, (0, 3))).generation
    torch.testing.assert_close(padded, expected, atol=1e-6, rtol=0)


def test_similarity_and_matching_equal_transformers(pixels: Tensor) -> None:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    tower = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    former = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 4}
    config = Blip2Config(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        qformer_config={
            **former,
            "encoder_hidden_size": 24,
            "vocab_size": VOCABULARY + 2,
            "max_position_embeddings": 65,
            "use_qformer_text_input": True,
        },
        num_query_tokens=6,
        image_text_hidden_size=16,
    )
    theirs = Blip2ForImageTextRetrieval(config).eval()
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.2)
    model = RepresentationModel(_Pixels(theirs.vision_model), q_former(positions=False), VOCABULARY, dim=16)
    model.connector.norm_image = nn.Identity()  # theirs is the last of the encoder
    renames = {
        "query_tokens": "connector.queries",
        "embeddings.word_embeddings.weight": "words.weight",
        "embeddings.position_embeddings.weight": "order",
        "qformer.layernorm.": "connector.norm_queries.",
        "vision_projection.": "image_projection.",
        "text_projection.": "text_projection.",
        "itm_head.": "matching.",
        "vision_model.": "encoder.tower.",
    }
    for i in range(4):
        old, new = f"qformer.encoder.layer.{i}.", f"connector.blocks.{i}."
        for attention, mine in (("attention", "attend"), ("crossattention", "cross")):
            renames |= {
                f"{old}{attention}.attention.{p}.": f"{new}{mine}.{p}." for p in ("query", "key", "value")
            }
            renames[f"{old}{attention}.output.dense."] = f"{new}{mine}.out."
            renames[f"{old}{attention}.output.LayerNorm."] = f"{new}norm_{mine}."
        renames |= {
            f"{old}intermediate_query.dense.": f"{new}mlp.0.",
            f"{old}output_query.dense.": f"{new}mlp.2.",
            f"{old}output_query.LayerNorm.": f"{new}norm_mlp.",
            f"{old}intermediate.dense.": f"text_mlps.{i}.mlp.0.",
            f"{old}output.dense.": f"text_mlps.{i}.mlp.2.",
            f"{old}output.LayerNorm.": f"text_mlps.{i}.norm.",
        }
    state = {}
    for name, value in theirs.state_dict().items():
        (prefix,) = [old for old in renames if name.startswith(old)]
        state[renames[prefix] + name[len(prefix) :]] = value
    report = model.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    lacking = {key.removeprefix("connector.").split(".")[0] for key in report.missing_keys}
    assert lacking == {"project", "log_scale", "transform", "word_bias"}  # theirs neither trains nor writes

    ids = F.pad(CAPTIONS, (1, 0), value=VOCABULARY)
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids != 0).long()}
    tokens = model.encoder(pixels)
    torch.testing.assert_close(
        compare(model.embed_image(tokens), model.embed_text(CAPTIONS)),
        theirs(**inputs).logits_per_image,
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        model.match(tokens, CAPTIONS),
        theirs(**inputs, use_image_text_matching_head=True).logits_per_image,
        atol=1e-5,
        rtol=0,
    )


class _Pixels(nn.Module):
    """A tower of transformers as an encoder."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state


@pytest.mark.parametrize("instruction", [False, True])
def test_the_next_stage_takes_the_connector_as_it_is(instruction: bool, pixels: Tensor) -> None:
    model = make(instruction=instruction)
    model(pixels, CAPTIONS).total.backward()
    lacking = {
        name.split(".")[1] if name.startswith("connector.") else name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any()
    }
    assert lacking == {"project", *(("project_text", "text_positions") if instruction else ())}
    assert len(model.text_mlps) == (1 if instruction else 4)  # of the last block, which the connector lacks
    following = q_former(instruction=instruction)
    following.load_state_dict(model.connector.state_dict(), strict=True)
    tokens = model.encoder(pixels)
    assert torch.equal(following.run(tokens), model.connector.run(tokens))


def test_it_learns_a_batch() -> None:
    encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, 32)
    model = RepresentationModel(encoder, q_former(depth=2), VOCABULARY, dim=16, smoothing=0.0)
    pixels, captions = torch.rand(8, 3, 32, 32), torch.randint(1, VOCABULARY, (8, 4))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(120):
        losses = model(pixels, captions)
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    tokens = model.encoder(pixels)
    similarity = compare(model.embed_image(tokens), model.embed_text(captions))
    assert (similarity.argmax(dim=1) == torch.arange(8)).all()
    assert (model.match(tokens, captions).argmax(dim=1) == 1).all()
    assert (model.match(tokens, captions.roll(1, 0)).argmax(dim=1) == 0).all()
    assert (model.generate(tokens, captions)[1].argmax(dim=2) == captions).float().mean() > 0.95


def test_other_connectors_and_long_captions_are_refused(model: RepresentationModel, pixels: Tensor) -> None:
    with pytest.raises(LabError, match="needs a q_former, not Linear"):
        RepresentationModel(model.encoder, build("connector", "linear", 24, 40, 16), VOCABULARY)
    with pytest.raises(LabError, match="captions have 70 ids, but max_text is 64"):
        model(pixels, torch.ones(5, 70, dtype=torch.int64))
