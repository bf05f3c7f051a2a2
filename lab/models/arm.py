"""A trained arm as one folder: its components and a tokenizer. Whoever has the folder has the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.contracts import ImageDecoder, TextDecoder
from lab.config import ROLES, Params, unadapted
from lab.errors import LabError
from lab.models.cached import AbsentEncoder
from lab.models.store import load_component, save_component
from lab.models.unified import UnifiedModel
from lab.registry import build
from lab.samples.batch import Collate
from lab.samples.features import Features
from lab.samples.segments import IMAGE_END, IMAGE_START
from lab.samples.tokenizer import Tokenizer

TOKENIZER = "tokenizer"
RECORD = "arm.json"


@dataclass
class Arm:
    """A unified model with its tokenizer.

    Attributes:
        model: the parts of the system.
        tokenizer: of the text decoder.
        built: role -> (specification, positional arguments), what each component was built with.
    """

    model: UnifiedModel
    tokenizer: Tokenizer
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]]

    @property
    def image_marks(self) -> tuple[int, int]:
        """Ids of `<image_start>` and `<image_end>`."""
        return self.tokenizer[IMAGE_START], self.tokenizer[IMAGE_END]

    @property
    def longest(self) -> int | None:
        """Positions that the language model has, None where it has no such limit."""
        config = getattr(getattr(self.model.text_decoder, "model", None), "config", None)
        return getattr(config.get_text_config(), "max_position_embeddings", None) if config else None

    def collate(
        self, tasks: tuple[str, ...], left: bool = False, features: Features | None = None
    ) -> Collate:
        """Batches for this model; its parts say how many positions an image takes."""
        model = self.model
        counts = model.tokens_read, model.tokens_drawn
        return Collate(self.tokenizer, *counts, tasks, left, model.reads_text, features)

    def save(self, folder: Path) -> None:
        """Writes components and tokenizer."""
        for role, (spec, args) in self.built.items():
            part = getattr(self.model, role)
            if isinstance(part, AbsentEncoder):
                part.save_to(folder / role)
            else:
                save_component(folder / role, role, spec, args, part)
        self.tokenizer.save(folder / TOKENIZER)
        record = {"targets": self.model.target_space}
        (folder / RECORD).write_text(json.dumps(record) + "\n")


def new_arm(
    params: Params,
    connector: str,
    trained: Mapping[str, Path],
    tokenizer: Tokenizer,
    image_decoder: ImageDecoder | None = None,
    features: Features | None = None,
) -> Arm:
    """An arm whose parts are those that earlier stages trained, and fresh ones.

    Args:
        params: of the pipeline; its seed is that of the fresh parts.
        connector: its word.
        trained: role -> folder of a component that an earlier stage wrote.
        tokenizer: of a language model that is made from scratch here.
        image_decoder: for a visual head whose loss goes through it.
        features: of all images that the arm will see; the encoder is then not loaded.
    """
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
    size = (params.world.image_size,)
    parts: dict[str, Any] = {}
    if features is None:
        parts["encoder"] = new_part(params, "encoder", params.encoder, size, trained, built)
    else:
        parts["encoder"] = AbsentEncoder(features, trained["encoder"])
        built["encoder"] = (params.spec("encoder", params.encoder), size)
    if "text_decoder" in trained:
        parts["text_decoder"], tokenizer = load_text_decoder(params, trained["text_decoder"])
    else:
        torch.manual_seed(params.seed)
        spec = params.spec("text_decoder", params.text_decoder)
        parts["text_decoder"] = build("text_decoder", spec, len(tokenizer))
    encoder, decoder = parts["encoder"], parts["text_decoder"]
    built["text_decoder"] = (params.spec("text_decoder", params.text_decoder), (len(tokenizer),))
    torch.manual_seed(params.seed)
    # a drawn image is the encoder's tokens, or the connector's, which are as wide as the language model
    args: tuple[int, ...] = (encoder.dim, _width_read(params, decoder.dim), encoder.num_tokens)
    parts["connector"] = new_part(params, "connector", connector, args, trained, built, seed=False)
    tokens = parts["connector"].num_tokens
    args = (decoder.dim, len(decoder.layers), tokens)
    parts["fusion"] = new_part(params, "fusion", params.fusion, args, trained, built, seed=False)
    if params.visual_head is not None:
        space = (encoder.dim, encoder.num_tokens) if params.targets == "encoder" else (decoder.dim, tokens)
        args = (decoder.dim, *space)
        head = new_part(params, "visual_head", params.visual_head, args, trained, built, seed=False)
        parts["visual_head"] = head
    model = UnifiedModel(**parts, targets=params.targets, image_decoder=image_decoder)  # type: ignore[arg-type]
    return Arm(model, tokenizer, built)


def load_arm(
    folder: Path, image_decoder: ImageDecoder | None = None, features: Features | None = None
) -> Arm:
    """Reads an arm that `Arm.save` wrote; the model is in eval mode. Arguments as of `new_arm`."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{folder}: no trained arm can be read there: {error}") from error
    roles = [role for role in ROLES if (folder / role).exists()]
    parts: dict[str, Any] = {
        role: AbsentEncoder(features, folder / role)
        if role == "encoder" and features is not None
        else load_component(folder / role)
        for role in roles
    }
    configs = {role: json.loads((folder / role / "config.json").read_text()) for role in roles}
    built = {role: (config["spec"], tuple(config["args"])) for role, config in configs.items()}
    model = UnifiedModel(**parts, targets=record["targets"], image_decoder=image_decoder)
    return Arm(model.eval(), Tokenizer.load(folder / TOKENIZER), built)


def load_text_decoder(params: Params, folder: Path) -> tuple[TextDecoder, Tokenizer]:
    """The pretrained text decoder and its tokenizer.

    The stage trains the decoder as it is; adapters, if the settings ask for them, are added here, at zero.
    """
    source = folder if (folder / TOKENIZER).exists() else folder.parent  # of the stage, or of an arm
    tokenizer = Tokenizer.load(source / TOKENIZER)
    trained = load_component(folder)
    spec = params.spec("text_decoder", params.text_decoder)
    stored = json.loads((folder / "config.json").read_text())["spec"]
    if spec in (unadapted(spec), stored):
        return trained, tokenizer
    adapted = build("text_decoder", spec, len(tokenizer))
    adapted.load_state_dict(trained.state_dict())
    return adapted.eval(), tokenizer


def new_part(
    params: Params,
    role: str,
    word: str,
    args: tuple[int, ...],
    trained: Mapping[str, Path],
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]],
    seed: bool = True,
) -> Any:
    """The part that an earlier stage trained, or a fresh one.

    Args:
        params: of the pipeline.
        role, word, args: what to build where no folder of `trained` has the role.
        trained: role -> folder.
        built: gets the specification and arguments of the part.
        seed: whether a fresh part starts from the pipeline's seed, or goes on drawing from where torch is.
    """
    built[role] = (params.spec(role, word), args)
    if role in trained:
        return load_component(trained[role])
    if seed:
        torch.manual_seed(params.seed)
    return build(role, built[role][0], *args)


def _width_read(params: Params, dim: int) -> int:
    """Width of the visual tokens that the fusion takes, D unless its settings say otherwise."""
    return int(params.spec("fusion", params.fusion).get("dim_visual") or dim)
