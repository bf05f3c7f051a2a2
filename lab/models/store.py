"""Components on disk: `config.json` (what) and `model.safetensors` (weights). Loading executes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lab.errors import LabError
from lab.registry import build


def save_component(
    folder: Path, role: str, spec: Mapping[str, Any], args: tuple[Any, ...], module: nn.Module
) -> None:
    """Writes a component.

    Args:
        folder: created if missing.
        role, spec, args: what `build` was called with; `args` must be plain numbers.
        module: whose weights are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    shared: dict[int, str] = {}
    for name in list(state):  # tied weights are stored once, and tied again on load
        if (first := shared.setdefault(state[name].data_ptr(), name)) != name and state[name].numel():
            del state[name]
            assert first in state
    save_file(state, folder / "model.safetensors")
    config = {"role": role, "spec": dict(spec), "args": list(args)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_component(folder: Path) -> Any:
    """Builds the component that was saved and loads its weights; it keeps the protocol of its role.

    Raises:
        LabError: files are missing, or weights do not fit.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise LabError(f"{folder}: no component can be read there: {error}") from error
    module = build(config["role"], config["spec"], *config["args"])
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of shapes; a line for each, after a heading
        first = str(error).splitlines()[1].strip()
        raise LabError(
            f"{folder}: weights do not fit {config['role']} {config['spec']['name']}: {first}"
        ) from error
    own = module.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name in missing if own[name].data_ptr() not in loaded]
    if missing or unexpected:
        raise LabError(
            f"{folder}: weights do not fit {config['role']} {config['spec']['name']}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    return module.eval()
