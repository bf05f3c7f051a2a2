"""The first stage of BLIP-2: a Q-Former learns from captions what of an image text speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.contracts import Encoder
from lab.errors import LabError


@dataclass(frozen=True)
class Losses:
    """Losses of a batch, each a scalar; BLIP-2 adds them up.

    Attributes:
        contrastive: ITC, images against captions, both ways.
        matching: ITM, whether image and caption belong together, with hard negatives.
        generation: ITG, mean cross-entropy over the captions' words.
    """

    contrastive: Tensor
    matching: Tensor
    generation: Tensor

    @property
    def total(self) -> Tensor:
        return self.contrastive + self.matching + self.generation


class RepresentationModel(nn.Module):
    """An encoder and a Q-Former, with words, a text branch and three heads around them.

    Images and captions pass through the Q-Former's blocks under one of three masks: apart (ITC), seeing each
    other (ITM), or text that sees the queries and the words before it (ITG). What the next stage takes is
    `connector.state_dict()`; all else is of this stage only. Two learned ids follow those of the vocabulary:
    `vocabulary` begins text to compare, `vocabulary + 1` text to generate.

    Paper: BLIP-2, arXiv:2301.12597, section 3.1. It starts from BERT's weights; here all start at random, the
    text's MLPs as copies of the queries'.

    Args:
        encoder: (B, 3, H, W) -> (B, N, D_v).
        connector: a Q-Former.
        vocabulary: number of word ids.
        dim: width of the space in which images and captions are compared.
        smoothing: of the labels of the contrastive loss.
        max_text: longest caption, in ids.

    Raises:
        LabError: the connector is no Q-Former.
    """

    encoder: Encoder
    connector: Any

    def __init__(
        self,
        encoder: Encoder,
        connector: nn.Module,
        vocabulary: int,
        dim: int = 128,
        smoothing: float = 0.1,
        max_text: int = 64,
    ) -> None:
        super().__init__()
        if not hasattr(connector, "further_text_mlps"):
            raise LabError(f"representation: needs a q_former, not {type(connector).__name__}")
        self.encoder, self.connector = encoder, connector
        self.vocabulary, self.smoothing = vocabulary, smoothing
        width, self.num_queries = self.connector.dim, self.connector.num_tokens
        self.words = nn.Embedding(vocabulary + 2, width, padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.02)
        self.order = nn.Parameter(0.02 * torch.randn(max_text + 1, width))
        self.text_mlps = self.connector.further_text_mlps()
        self.image_projection, self.text_projection = nn.Linear(width, dim), nn.Linear(width, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # 1 / 0.07
        self.matching = nn.Linear(width, 2)  # no, yes
        # BERT's head; its last layer is the table of words
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, pixels: Tensor, captions: Tensor) -> Losses:
        """Losses of pixels (B, 3, H, W) in [0, 1] and their captions (B, L), ids padded with 0 at the end."""
        tokens = self.encoder(pixels)
        same = (captions.unsqueeze(0) == captions.unsqueeze(1)).all(dim=-1)  # (B, B) equal captions
        states, logits = self.generate(tokens, captions)
        # the queries do not see the text, so these states are those of the image alone
        image = self._project(self.image_projection, states)
        similarity = self.log_scale.clamp(max=4.6).exp() * compare(image, self.embed_text(captions))  # (B, B)
        contrastive = (self._contrast(similarity, same) + self._contrast(similarity.T, same)) / 2
        logits_matching, labels = self.match_hard(tokens, captions, similarity.detach(), same)
        return Losses(
            contrastive=contrastive,
            matching=F.cross_entropy(logits_matching, labels),
            generation=F.cross_entropy(logits.flatten(0, 1), captions.flatten(), ignore_index=0),
        )

    def embed_image(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D_v) to what each query reads, (B, M, dim), unit length."""
        return self._project(self.image_projection, self.connector.run(tokens))

    def embed_text(self, captions: Tensor) -> Tensor:
        """Captions (B, L) to (B, dim), unit length; no image is seen."""
        text, real = self._text(captions, self.vocabulary)
        states = self.connector.run(None, text, real.unsqueeze(1), self._text_mlps())  # (B, 1 + L, width)
        return self._project(self.text_projection, states[:, 0])

    def match(self, tokens: Tensor, captions: Tensor) -> Tensor:
        """Score tokens (B, N, D_v) against captions (B, L), row by row: logits (B, 2) of no and yes."""
        text, real = self._text(captions, self.vocabulary)
        seen = torch.cat([real.new_ones(len(real), self.num_queries), real], dim=1)  # (B, M + 1 + L)
        states = self.connector.run(tokens, text, seen.unsqueeze(1), self._text_mlps())
        return self.matching(states[:, : self.num_queries]).mean(dim=1)  # (B, M, 2) -> (B, 2)

    def match_hard(
        self, tokens: Tensor, captions: Tensor, similarity: Tensor, same: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the pairs, an image like each caption and a caption like each image that do not belong to it.

        Args:
            tokens: (B, N, D_v).
            captions: (B, L).
            similarity: of images (rows) and captions, (B, B); the more alike, the likelier to be drawn.
            same: which captions are equal, (B, B).

        Returns:
            Logits (3B, 2) and labels (3B,): 1 for the B pairs, 0 for what was drawn. Rows whose caption is
            that of the whole batch have no negatives, which are then missing.
        """
        mixed = (~same).any(dim=1)
        images = _draw(similarity.T[mixed], same[mixed])
        texts = _draw(similarity[mixed], same[mixed])
        logits = self.match(
            torch.cat([tokens, tokens[images], tokens[mixed]]),
            torch.cat([captions, captions[mixed], captions[texts]]),
        )
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        labels[: len(tokens)] = 1
        return logits, labels

    def generate(self, tokens: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Let captions (B, L) be predicted from tokens (B, N, D_v) and the words before.

        Returns:
            States of the queries (B, M, width), and logits (B, L, V) for each word of the caption.
        """
        text, real = self._text(captions, self.vocabulary + 1)
        text = text[:, :-1]  # (B, L, width)
        length = self.num_queries + text.shape[1]
        seen = real.new_ones(length, length).tril()  # of padding, only what comes after it sees any
        seen[: self.num_queries, : self.num_queries] = True
        states = self.connector.run(tokens, text, seen, self._text_mlps())
        queries, words = states[:, : self.num_queries], states[:, self.num_queries :]
        table = self.words.weight[: self.vocabulary]  # (V, width)
        return queries, F.linear(self.transform(words), table, self.word_bias)

    def _text(self, captions: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Embed the id `first` and captions (B, L): (B, 1 + L, width), and which are real, (B, 1 + L)."""
        ids = F.pad(captions, (1, 0), value=first)
        if ids.shape[1] > len(self.order):
            raise LabError(f"captions have {captions.shape[1]} ids, but max_text is {len(self.order) - 1}")
        return self.words(ids) + self.order[: ids.shape[1]], ids != 0

    def _text_mlps(self) -> list[nn.Module]:
        return [*self.connector.text_mlps, *self.text_mlps]

    def _project(self, projection: nn.Module, states: Tensor) -> Tensor:
        return F.normalize(projection(states), dim=-1)

    def _contrast(self, logits: Tensor, right: Tensor) -> Tensor:
        """Cross-entropy (scalar) with smoothing; probabilities of several right answers add up."""
        log_share = logits.log_softmax(dim=1)
        found = log_share.masked_fill(~right, float("-inf")).logsumexp(dim=1)
        return -((1 - self.smoothing) * found + self.smoothing * log_share.mean(dim=1)).mean()


def compare(image: Tensor, text: Tensor) -> Tensor:
    """Similarity (B, K) of images (B, M, dim) and texts (K, dim): that of the query nearest to the text."""
    return torch.einsum("bmd,kd->bkm", image, text).max(dim=2).values


def _draw(similarity: Tensor, same: Tensor) -> Tensor:
    """For each row (K, B) draw one of the B that is not the same, the similar ones more often."""
    weight = similarity.softmax(dim=1) + 1e-4  # something is left where the right answers take all
    return torch.multinomial(weight.masked_fill(same, 0), 1).squeeze(1)
