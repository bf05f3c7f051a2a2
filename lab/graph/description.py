"""What a system weighs and what its training costs, told without weights and without the network.

Every part is built on torch's meta device, where tensors have shapes and no values. Parameters are counted
there, and the operations of one sample's way forth and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lab.config import Params
from lab.errors import LabError
from lab.graph.system import ALONE, CHECKPOINTS, JOINT
from lab.registry import ROLES, build, check

SMALL_SEQUENCE = 128  # positions of a sample of the built-in world, with an image read and one drawn
QUESTION = 64  # positions of a question that a connector reads
NF4 = 0.5 + 4 / 64  # bytes of a weight in four bits, with the scale of its block
MEMORY = (
    "Memory: weights and gradients in bf16 (2 bytes; NF4 0.56); AdamW's two moments and a master copy in "
    "fp32 (12 bytes a trainable parameter); activations not counted."
)
OPERATIONS = (
    "Operations of an optimizer step, a multiply-add as two: matrix products and convolutions of the forward "
    "pass and of the gradients that this stage needs, as autograd runs them. A sample has `sequence` "
    "positions, all of which attend to all, an image that is read and one that is drawn, or the latter alone "
    "where both do not fit. Nothing is computed twice to save memory."
)


@dataclass(frozen=True)
class Part:
    """One role of a system.

    Attributes:
        role, word: what it is.
        parameters: how many it has.
        trainable: stage -> how many train, of the stages that run it.
    """

    role: str
    word: str
    parameters: int
    trainable: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """One stage of a system.

    Attributes:
        stage: its name.
        batch_size: samples of an optimizer step, None where it is not stated.
        weights, gradients, optimizer: bytes.
        operations: of an optimizer step, or of one sample.
    """

    stage: str
    batch_size: int | None
    weights: int
    gradients: int
    optimizer: int
    operations: int


def describe(shape: Mapping[str, Any]) -> tuple[list[Part], list[Cost]]:
    """Build a system without weights, and count.

    Args:
        shape: as `System.full`.

    Raises:
        LabError: parts that do not fit each other.
    """
    with outlined(shape) as parts:
        costs = [_cost(name, stage, parts, shape) for name, stage in shape["stages"].items()]
        return weigh(shape, parts), costs


def shape_of(params: Params) -> dict[str, Any]:
    """The first arm of a pipeline's parameters in the form of `System.full`.

    Stages that train the encoder or the language model alone are left out, and sequences are taken to be of
    one length.
    """
    from lab.samples.segments import SPECIAL_TOKENS
    from lab.scenes.language import Language
    from lab.scenes.world import World

    world = params.world
    scenes = World(world.image_size, world.grid, world.max_digits, world.variants, world.locations)
    stages = {}
    for name in params.recipe:
        if name in (*ALONE, *JOINT):
            stage = params.fitted(name)
            stages[name] = {
                "trainable": getattr(stage, "trainable", ["connector"]),
                "batch_size": stage.batch_size,
                "sequence": SMALL_SEQUENCE,
            }
    return {
        **dict.fromkeys(ROLES),
        **{role: params.spec(role, word) for role, word in params.words().items()},
        "connector": params.spec("connector", params.connectors[0]),
        "image_size": world.image_size,
        "targets": params.targets,
        "vocab_size": len(SPECIAL_TOKENS) + len(Language(scenes).vocabulary()),
        "stages": stages,
    }


def weigh(shape: Mapping[str, Any], parts: Mapping[str, Any]) -> list[Part]:
    """Count the parameters of the parts, and those that train in each stage that runs them."""
    return [
        Part(
            role,
            check(role, shape[role])[0],
            _total(part.parameters()),
            {
                name: sum(_training(role, part, stage["trainable"]).values())
                for name, stage in shape["stages"].items()
                if role in _running(name, parts, shape)
            },
        )
        for role, part in parts.items()
    ]


def beside(parts: Iterable[Part], published: Mapping[str, int]) -> list[tuple[str, int, int, float]]:
    """What is published, beside what was counted: roles, counted, published, relative difference."""
    counted = {part.role: part.parameters for part in parts}
    rows = [(key, sum(counted[role] for role in key.split(" + ")), value) for key, value in published.items()]
    return [(*row, row[1] / row[2] - 1) for row in rows]


@contextmanager
def outlined(shape: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Build every role on the meta device; widths flow from one to the next.

    What is made of tensors while the context is open is without values, too.
    """
    # a part of components/, and the lab knows those by their names alone
    architectures = import_module("components.layers.pretrained").architectures
    with torch.device("meta"), architectures(CHECKPOINTS):
        encoder = build("encoder", shape["encoder"], shape["image_size"])
        decoder = build("text_decoder", shape["text_decoder"], shape["vocab_size"])
        read = check("fusion", shape["fusion"])[1].get("dim_visual") or decoder.dim
        connector = build("connector", shape["connector"], encoder.dim, read, encoder.num_tokens)
        fusion = build("fusion", shape["fusion"], decoder.dim, len(decoder.layers), connector.num_tokens)
        parts = {"encoder": encoder, "connector": connector, "text_decoder": decoder, "fusion": fusion}
        targets = shape["targets"]  # width and number of the tokens that a drawn image is made of
        space = encoder.dim, encoder.num_tokens
        if targets == "connector":
            space = read, connector.num_tokens
        elif targets != "encoder":
            space = targets["dim"], targets["num_tokens"]
        if shape["visual_head"] is not None:
            head = parts["visual_head"] = build("visual_head", shape["visual_head"], decoder.dim, *space)
            if (
                getattr(head, "feedback", "own") == "shared"
            ):  # with what reads images, as in the unified model
                head.share((lambda drawn, first: drawn) if targets == "connector" else connector)
        if (spec := shape["image_decoder"]) is not None:
            parts["image_decoder"] = build("image_decoder", spec, *space, shape["image_size"])
        fusion.attach(decoder.layers)
        for part in parts.values():
            part.eval()  # what is dropped at random in training depends on values
        yield parts


def _running(name: str, parts: Mapping[str, Any], shape: Mapping[str, Any]) -> list[str]:
    """The roles that a stage runs, in the order in which an image passes them."""
    if name == "represent":
        return ["encoder", "connector"]
    if name == "image_decoder":
        tokenizer = ["encoder", "connector"] if shape["targets"] == "connector" else ["encoder"]
        return [*tokenizer, "image_decoder"]
    through = "visual_head" in parts and parts["visual_head"].through_decoder
    return [role for role in parts if role != "image_decoder" or through]


def _training(role: str, part: Any, trainable: Iterable[str]) -> dict[str, int]:
    """The parameters of a role that a stage trains: name -> how many of its numbers.

    Raises:
        LabError: no parameter fits an entry of `trainable`.
    """
    chosen: dict[str, int] = {}
    for entry in trainable:
        owner, _, pattern = entry.partition(".")
        if owner != role:
            continue
        if pattern == "image_marks":  # of the word embeddings and the output layer, the rows of two tokens
            found = {n: 2 * p[0].numel() for n, p in part.named_parameters() if len(p) == part.vocab_size}
        elif pattern in ("lora", "adapters"):
            adapters = part.adapter_parameters()
            found = {n: p.numel() for n, p in adapters if pattern == "adapters" or "lora_" in n}
        else:
            found = {n: p.numel() for n, p in part.named_parameters() if fnmatchcase(n, pattern or "*")}
        if not found and pattern:
            raise LabError(f"trainable: no parameter of {role} matches '{pattern}'")
        chosen |= found
    return chosen


def _total(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _cost(name: str, stage: Mapping[str, Any], parts: Mapping[str, Any], shape: Mapping[str, Any]) -> Cost:
    running = _running(name, parts, shape)
    weights = sum(2 * _total(parts[role].parameters()) for role in running)
    if "text_decoder" in running:
        packed = _total(linear.weight for _, linear in _packed(parts["text_decoder"]))
        weights -= round(packed * (2 - NF4))
    trained = 0
    for role in running:
        parts[role].requires_grad_(False)
        for parameter, numbers in _training(role, parts[role], stage["trainable"]).items():
            parts[role].get_parameter(parameter).requires_grad_(True)
            trained += numbers
    with FlopCounterMode(display=False) as counter:
        loss = _loss(name, stage, parts, shape)
        if loss.requires_grad:
            loss.backward()
    batch = stage["batch_size"]
    operations = (batch or 1) * counter.get_total_flops()
    return Cost(name, batch, weights, 2 * trained, 12 * trained, operations)


def _packed(decoder: Any) -> Iterable[tuple[str, Any]]:
    """Layers of a text decoder that hold their weights in four bits."""
    return decoder.base_linears() if hasattr(decoder, "base_linears") else ()


def _loss(name: str, stage: Mapping[str, Any], parts: Mapping[str, Any], shape: Mapping[str, Any]) -> Tensor:
    """Run a stage on one sample; a number without value, on which what trains has its influence.

    Raises:
        LabError: the images of a sample are longer than its sequence.
    """
    pixels, targets = torch.empty(1, 3, shape["image_size"], shape["image_size"]), shape["targets"]
    connector, decoder, fusion = parts["connector"], parts["text_decoder"], parts["fusion"]
    tokens = parts["encoder"](pixels)
    if name == "image_decoder":
        drawn = connector(tokens) if targets == "connector" else tokens
        return parts["image_decoder"].loss(drawn, pixels).sum()
    question: tuple[Tensor, ...] = ()
    if getattr(connector, "reads_text", False):
        question = torch.empty(1, QUESTION, decoder.dim), torch.ones(1, QUESTION, dtype=torch.bool)
    read = connector(tokens, *question)
    if name == "represent":
        return read.sum()

    head, length, slots = parts.get("visual_head"), stage["sequence"], 0
    drawn = read if targets == "connector" else tokens
    if isinstance(targets, Mapping):
        drawn = torch.empty(1, targets["num_tokens"], targets["dim"])
    inputs, noise, segments = None, None, []
    if head is not None:
        inputs, noise = head.inputs(drawn)
        slots = head.num_slots
        segments = [inputs]
    if fusion.in_sequence and (head is None or connector.num_tokens + slots <= length):
        segments = [read, *segments]
    words = length - sum(segment.shape[1] for segment in segments)
    if words < 0:
        raise LabError(f"{name}: sequence {length} is shorter than its images, by {-words} positions")
    embeds = torch.cat([decoder.embed(torch.zeros(1, words, dtype=torch.long)), *segments], dim=1)
    # a mask that says everything: with others transformers looks at values, and there are none
    mask = torch.ones(1, length, length, dtype=torch.bool)
    places = torch.zeros(1, length, dtype=torch.long)
    with nullcontext() if fusion.in_sequence else fusion.reading(read.unsqueeze(1), places):
        states = decoder(embeds, mask, places)
    loss = decoder.logits(states).sum()
    if head is not None and head.through_decoder:
        loss = loss + parts["image_decoder"].loss(head(states[:, -slots:]), pixels).sum()
    elif head is not None:
        loss = loss + head.loss(states[:, -slots:], drawn.detach(), noise).sum()
    return loss
