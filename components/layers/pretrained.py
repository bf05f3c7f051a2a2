"""Weights in the format of transformers and diffusers, from a local folder or the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["architectures", "load", "outline"]

_FACTS: ContextVar[Path | None] = ContextVar("facts", default=None)


@contextmanager
def architectures(folder: Path) -> Iterator[None]:
    """While open, `load` builds what it is asked for from a configuration, without weights and network.

    Together with torch's meta device this tells the sizes of published models. The configuration of
    `owner/name` is `owner--name.json` in `folder`: what the repository's config.json says, or for a pipeline
    of several parts a mapping of subfolder to what is said there. A local folder has its own.
    """
    token = _FACTS.set(folder)
    try:
        yield
    finally:
        _FACTS.reset(token)


def load(source: Any, path: str, kind: str, **settings: Any) -> Any:
    """Call `source.from_pretrained(path)`, and say in one line what was expected when that fails.

    Args:
        source: a class of transformers or diffusers.
        path: a local folder, or the name of a repository on the hub.
        kind: what is being loaded, for the message.
        settings: passed on.

    Raises:
        ValueError: nothing of this kind can be read there, or weights are missing.
    """
    if (built := outline(source, path, kind, settings.get("subfolder"))) is not None:
        return built
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


def outline(source: Any, path: str, kind: str, subfolder: str | None = None) -> Any:
    """Build what `source.from_pretrained(path)` would give, without its weights; None unless told to.

    Args:
        source: a class of transformers or diffusers: a configuration, a model or a scheduler.
        path: a local folder, or the name of a repository on the hub.
        kind: what is being built, for the message.
        subfolder: where in `path` it is; None is the folder itself.

    Raises:
        ValueError: `architectures` is open, but no configuration is found.
    """
    facts = _FACTS.get()
    if facts is None:
        return None
    name = getattr(source, "config_name", "config.json")  # schedulers of diffusers have their own
    local = Path(path).expanduser() / (subfolder or "")
    file = local / name if local.is_dir() else facts / f"{path.replace('/', '--')}.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config = config[subfolder] if subfolder and not local.is_dir() else config
    except (OSError, ValueError, KeyError) as error:
        of = f" of its {subfolder}" if subfolder else ""
        raise ValueError(f"no configuration{of} of the {kind} '{path}' in {file}") from error
    with TemporaryDirectory() as folder:  # the libraries read configurations from folders only
        (Path(folder) / name).write_text(json.dumps(config), encoding="utf-8")
        if hasattr(source, "load_config"):  # of diffusers
            return source.from_config(source.load_config(folder))
        if not hasattr(source, "from_config") and not hasattr(source, "config_class"):
            return source.from_pretrained(folder)  # itself a configuration
        from transformers import AutoConfig

        known = getattr(source, "config_class", None) or AutoConfig
        build = getattr(source, "from_config", None) or source._from_config
        return build(known.from_pretrained(folder))
