"""Time and memory of a stage that has not run yet, from what it has to compute.

The operations of stages that run the language model are those of `lab describe`; of the others, those of the
part that they train. Both come from parts on torch's meta device.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab.graph.node import REPOSITORY
from lab.graph.planning.work import Work
from lab.graph.system import ALONE, JOINT
from lab.models.caching import FEATURES

# What these stages do is no network, or one too small to count: seconds an item on a core that reaches
# REFERENCE in the probe (machine.py); measured with the scenes and the judge of the reference ablation.
REFERENCE = 52e9  # operations a second
_DATA = 8e-5  # seconds a scene
_JUDGE = 3.5e-4  # seconds an image, forth and back
_SCORED = 4e-3  # seconds a sample that is answered or drawn, by a system of _SYSTEM parameters
_SYSTEM = 1.7e6
_STEP = 0.01  # seconds of an optimizer step beside its operations
# Seconds from the start of the process to its first step and from its last step to its end: imports, reading
# the data, validation. Measured on the same core.
_AROUND = {"data": 2.5, "judge": 3.0, "evaluate": 5.0}
_TRAINING = 8.0
_POSITIONS = 120  # of a document that a language model is pretrained on
_INTERPRETER = 590.0  # MB of a process that has imported all and read its data
_LIGHT = 420.0  # MB, of one without the trainer
_BYTES = 4  # of a number in fp32, in which the lab trains unless told otherwise
_ROOM = 2**20

# what a stage's shape lacks is taken from here: parts have to fit each other, and these always do
_FILLED: dict[str, Any] = {
    "encoder": {"name": "patches"},
    "connector": {"name": "linear"},
    "text_decoder": {"name": "llama", "dim": 64, "depth": 1, "num_heads": 4},
    "fusion": {"name": "sequence"},
    "visual_head": None,
    "image_decoder": None,
}


@dataclass(frozen=True)
class Cost:
    """One stage's work on one sample.

    Attributes:
        operations: of an optimizer step's share, a multiply-add as two.
        parameters, trained: how many it holds, and how many of them train.
        activations: bytes that wait for the way back.
    """

    operations: float
    parameters: float
    trained: float
    activations: float


class Model:
    """Estimates for one machine.

    Args:
        rate: operations a second that it reaches in the probe.
        file: remembers what was counted.
    """

    def __init__(self, rate: float, file: Path) -> None:
        self.rate = rate
        self.file = file
        self._known: dict[str, dict[str, float]] | None = None
        self._new = False

    def around(self, work: Work) -> float:
        """Seconds of the process before and after the work itself."""
        return _AROUND.get(work.stage, _TRAINING)

    def seconds(self, work: Work) -> float:
        """Seconds of the work itself.

        Raises:
            LabError, OSError, ValueError, RuntimeError: a part that cannot be built without its weights.
        """
        slower = REFERENCE / self.rate
        if work.stage == "data":
            return work.samples * _DATA * slower
        if work.stage == "judge":
            return work.samples * _JUDGE * slower
        cost = self.cost(work)
        if work.stage == "evaluate":
            return work.samples * _SCORED * slower * max(0.3, cost.parameters / _SYSTEM)
        step = cost.operations * work.batch / self.rate + _STEP * slower
        steps = work.samples / work.batch
        if work.budget is not None:
            from lab.graph.description import SMALL_SEQUENCE

            unit, amount = work.budget
            limits = {
                "seconds": amount / step,
                "flops": amount / (cost.operations * work.batch),
                "tokens": amount / (SMALL_SEQUENCE * work.batch),
            }
            steps = min(steps, limits[unit])
        return steps * step

    def memory(self, work: Work) -> float:
        """Peak of the process in MB: interpreter, weights, gradients, Adam's moments, activations.

        Raises: as `seconds`.
        """
        if work.stage in ("data", "judge"):
            return _LIGHT
        cost = self.cost(work)
        numbers = cost.parameters + 3 * cost.trained
        held = 1 if work.stage == "evaluate" else work.batch
        return _INTERPRETER + (_BYTES * numbers + held * cost.activations) / _ROOM

    def cost(self, work: Work) -> Cost:
        """Of one sample; counted once for works of one shape."""
        if self._known is None:
            self._known = _read(self.file)
        key = hashlib.sha256(f"{_code()} {work.stage} {sorted(work.shape.items())}".encode()).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = asdict(_count(work))
            self._new = True
        return Cost(**self._known[key])

    def save(self) -> None:
        """Remember what was counted."""
        if self._new:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            draft.write_text(json.dumps(self._known, indent=1) + "\n")
            os.replace(draft, self.file)


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        known: dict[str, dict[str, float]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known


@cache
def _code() -> str:
    """Changes with the parts and with what counts them."""
    files = [*sorted((REPOSITORY / "components").rglob("*.py")), Path(__file__)]
    files.append(REPOSITORY / "lab" / "graph" / "description.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _count(work: Work) -> Cost:
    from lab.graph.description import SMALL_SEQUENCE, describe, outlined

    stage, shape = work.stage, _shape(work.shape)
    if stage == "evaluate":
        with outlined(shape) as parts:
            return Cost(0.0, _numbers(parts.values()), 0.0, 0.0)
    if stage in FEATURES:
        whole = _of_part("encoder", shape)
        return Cost(
            whole.operations / 3, whole.parameters, 0.0, 0.0
        )  # no way back, which takes twice as long
    if stage not in (*ALONE, *JOINT):
        return _of_part(stage, shape)
    trainable = work.shape.get("trainable", ["connector"])
    shape["stages"] = {stage: {"trainable": trainable, "batch_size": 1, "sequence": SMALL_SEQUENCE}}
    with _saved() as bytes_saved:
        cost = describe(shape)[1][0]
    return Cost(cost.operations, cost.weights / 2, cost.gradients / 2, bytes_saved())  # in bf16 there


def _of_part(role: str, shape: Mapping[str, Any]) -> Cost:
    """An encoder or a language model that trains alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lab.graph.description import outlined

    with outlined(shape) as parts:
        part = parts[role].requires_grad_(True)
        with _saved() as bytes_saved, FlopCounterMode(display=False) as counter:
            if role == "encoder":
                result = part(torch.empty(1, 3, shape["image_size"], shape["image_size"]))
            else:
                words = part.embed(torch.zeros(1, _POSITIONS, dtype=torch.long))
                mask = torch.ones(1, _POSITIONS, _POSITIONS, dtype=torch.bool)
                result = part.logits(part(words, mask, torch.zeros(1, _POSITIONS, dtype=torch.long)))
            result.sum().backward()
        numbers = _numbers([part])
    return Cost(counter.get_total_flops(), numbers, numbers, bytes_saved())


def _numbers(parts: Iterable[Any]) -> float:
    return float(sum(parameter.numel() for part in parts for parameter in part.parameters()))


def _shape(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the form of `System.full`, without stages."""
    world = {key.removeprefix("world."): value for key, value in settings.items() if key.startswith("world.")}
    numbers = (world["image_size"], world["grid"], world["max_digits"], world.get("locations", 0))
    shape: dict[str, Any] = {
        "image_size": world["image_size"],
        "targets": settings.get("targets", "encoder"),
        "vocab_size": _vocabulary(*numbers),
        "stages": {},
    }
    for role, filled in _FILLED.items():
        start = f"{role}."
        own = {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}
        word = settings.get(role)
        shape[role] = {"name": word, **own} if word else filled
    return shape


@cache
def _vocabulary(image_size: int, grid: int, max_digits: int, locations: int) -> int:
    """Words of the language of a world."""
    from lab.samples.segments import SPECIAL_TOKENS
    from lab.scenes.language import Language
    from lab.scenes.world import World

    world = World(image_size, grid, max_digits, locations=locations)
    return len(SPECIAL_TOKENS) + len(Language(world).vocabulary())


@contextmanager
def _saved() -> Iterator[Callable[[], float]]:
    """Count the bytes that autograd keeps for the way back, parameters apart, each storage once."""
    import torch

    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor if tensor._base is None else tensor._base
        if not isinstance(own, torch.nn.Parameter):
            kept[own.untyped_storage()._cdata] = own.numel() * own.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: float(sum(kept.values()))
