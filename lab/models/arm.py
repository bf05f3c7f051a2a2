"""A trained arm as one folder: four components and a tokenizer. Whoever has the folder has the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from components.contracts import TextDecoder
from lab.config import Params
from lab.models.store import load_component, save_component
from lab.models.unified import UnifiedModel
from lab.registry import build
from lab.samples.batch import Collate
from lab.samples.tokenizer import Tokenizer

TOKENIZER = "tokenizer"


@dataclass
class Arm:
    """A unified model with its tokenizer.

    Attributes:
        model: the four components.
        tokenizer: of the text decoder.
        built: role -> (specification, positional arguments), what each component was built with.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    built: dict[str, tuple[dict[str, object], tuple[int, ...]]]

    def collate(self, tasks: tuple[str, ...], left: bool = False) -> Collate:
        """Batches for this model; its parts say how many visual tokens an image takes."""
        connector, encoder = self.model.connector, self.model.encoder
        return Collate(self.tokenizer, connector.num_tokens, encoder.num_tokens, tasks, left)

    def save(self, folder: Path) -> None:
        """Writes components and tokenizer."""
        for role, (spec, args) in self.built.items():
            save_component(folder / role, role, spec, args, getattr(self.model, role))
        self.tokenizer.save(folder / TOKENIZER)


def new_arm(
    params: Params, connector: str, encoder_folder: Path, text_decoder_folder: Path, seed: int
) -> Arm:
    """An arm at the start of alignment: pretrained encoder and text decoder, fresh connector and visual head.

    Args:
        params: of the pipeline.
        connector: its word.
        encoder_folder, text_decoder_folder: outputs of their stages.
        seed: of the fresh parts.
    """
    encoder = load_component(encoder_folder)
    text_decoder, tokenizer = load_text_decoder(params, text_decoder_folder)
    torch.manual_seed(seed)
    built: dict[str, tuple[dict[str, object], tuple[int, ...]]] = {
        "encoder": (params.spec("encoder", params.encoder), (encoder.image_size,)),
        "connector": (
            params.spec("connector", connector),
            (encoder.dim, text_decoder.dim, encoder.num_tokens),
        ),
        "text_decoder": (params.spec("text_decoder", params.text_decoder), (len(tokenizer),)),
        "visual_head": (
            params.spec("visual_head", params.visual_head),
            (text_decoder.dim, encoder.dim, encoder.num_tokens),
        ),
    }
    parts = {"encoder": encoder, "text_decoder": text_decoder}
    for role in ("connector", "visual_head"):
        parts[role] = build(role, built[role][0], *built[role][1])
    return Arm(UnifiedModel(**parts), tokenizer, built)


def load_arm(folder: Path) -> Arm:
    """Reads an arm that `Arm.save` wrote; the model is in eval mode."""
    import json

    roles = ("encoder", "connector", "text_decoder", "visual_head")
    parts = {role: load_component(folder / role) for role in roles}
    configs = {role: json.loads((folder / role / "config.json").read_text()) for role in roles}
    built = {role: (config["spec"], tuple(config["args"])) for role, config in configs.items()}
    return Arm(UnifiedModel(**parts).eval(), Tokenizer.load(folder / TOKENIZER), built)


def load_text_decoder(params: Params, folder: Path) -> tuple[TextDecoder, Tokenizer]:
    """The pretrained text decoder and its tokenizer.

    The stage trains the decoder without adapters; LoRA, if the settings ask for it, is added here, at zero.
    """
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    trained = load_component(folder)
    spec = params.spec("text_decoder", params.text_decoder)
    if not spec.get("lora_rank"):
        return trained, tokenizer
    adapted = build("text_decoder", spec, len(tokenizer))
    adapted.load_state_dict(trained.state_dict())
    return adapted.eval(), tokenizer
