"""The random generators of a process: what they are at, and back to it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """States of torch, of the process's GPU if it has one, of NumPy and of Python; safe to load again."""
    numpy_state: Any = np.random.get_state(legacy=True)  # a tuple; its type allows a dict as well
    name, keys, position, has_gauss, gauss = numpy_state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (name, torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def set_random_states(state: dict[str, Any]) -> None:
    """Puts the generators where `random_states` found them."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype("uint32"), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_apart(rank: int, step: int = 0) -> None:
    """Gives a process of higher rank noise of its own: all of them start from one seed, for equal weights."""
    seed = torch.initial_seed() % 2**32 + rank + 1_000_003 * step
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
