"""The protocols of `lab eval`: what each measures, what it reads, and whether it takes shots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.evaluation import drawing, reading
from lab.evaluation.figures import Figure
from lab.evaluation.subject import Asking, Subject

Measuring = Callable[[Subject, Asking], dict[str, Figure]]


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        summary: what it measures, in a few words.
        measure: gives its figures by name; none where the arm or its world has nothing of the kind.
        reads: what its figures follow from beside the arm and the data (see `Material.part` of
            lab/graph/evaluations.py).
        networks: settings of `Asking` that name a network its figures follow from.
        in_context: whether questions may have solved examples before them.
        matched: whether "matched" examples differ from "random" ones.
    """

    summary: str
    measure: Measuring
    reads: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    in_context: bool = False
    matched: bool = False


_DRAWN = ("judge", "image_decoder")

PROTOCOLS: Mapping[str, Protocol] = {
    "vqa": Protocol(
        "questions about images, by kind", reading.visual_questions, in_context=True, matched=True
    ),
    "caption": Protocol("captions: CIDEr-D, BLEU-4, ROUGE-L", reading.captions, in_context=True),
    "by_example": Protocol(
        "questions that only the examples before them tell", reading.by_example, in_context=True
    ),
    "pope": Protocol("objects that are not there: POPE", reading.hallucination),
    "grounding": Protocol("boxes, where the world has location words", reading.boxes),
    "text": Protocol("perplexity of text without images", reading.plain_text),
    "fidelity": Protocol(
        "what drawn scenes have of their prompts: cells, kinds, GenEval's tasks",
        drawing.prompt_fidelity,
        _DRAWN,
    ),
    "edit": Protocol("edits: target changed, rest preserved", drawing.editing, _DRAWN),
    "frechet": Protocol("Fréchet distance of drawn to real images", drawing.distance, _DRAWN, ("features",)),
    "clip": Protocol(
        "CLIP score of drawn images", drawing.agreement, ("image_decoder", "contrastive"), ("clip",)
    ),
    "diversity": Protocol("how much images of one prompt differ", drawing.diversity, _DRAWN),
    "reconstruction": Protocol(
        "PSNR, SSIM and LPIPS of reconstructions", drawing.reconstruction, ("image_decoder", "alexnet")
    ),
}
