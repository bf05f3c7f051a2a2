"""Weights in the format of transformers, from a local folder or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load"]


def load(source: Any, path: str, kind: str, **settings: Any) -> Any:
    """Call `source.from_pretrained(path)`, and say in one line what was expected when that fails.

    Args:
        source: a class of transformers.
        path: a local folder, or the name of a repository on the hub.
        kind: what is being loaded, for the message.
        settings: passed on.

    Raises:
        ValueError: nothing of this kind can be read there, or weights are missing.
    """
    expected = (
        f"expected a local folder with config.json and model.safetensors, as save_pretrained of transformers "
        f"writes it, or the name of a {kind} on the Hugging Face hub, cached or reachable"
    )
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise ValueError(f"no folder '{path}': {expected}")
    try:
        loaded = source.from_pretrained(
            str(Path(path).expanduser()) if path.startswith("~") else path, **settings
        )
    except Exception as error:  # OSError, ValueError, errors of huggingface_hub and of safetensors
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"cannot load a {kind} from '{path}' ({reason}): {expected}") from error
    if settings.get("output_loading_info"):
        loaded, info = loaded
        # transformers fills what is missing with random numbers and only warns
        if info["missing_keys"]:
            raise ValueError(
                f"'{path}' lacks weights of a {kind}: {', '.join(sorted(info['missing_keys'])[:5])}"
            )
    return loaded
