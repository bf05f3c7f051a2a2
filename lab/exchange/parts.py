"""What reading a checkpoint of any kind takes: its model, its tokenizer, parts of ours with its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.errors import LabError
from lab.registry import build
from lab.samples.chat import OWN_TEMPLATE
from lab.samples.segments import BOS, EOS, PAD, SPECIAL_TOKENS
from lab.samples.tokenizer import Tokenizer

Weights = dict[str, Tensor]
Taken = dict[str, tuple[dict[str, Any], tuple[int, ...], Any]]  # role -> specification, arguments, part
_UNTOLD = (
    "transformers_version",
    "architectures",
    "dtype",
    "_name_or_path",
)  # of a checkpoint, not of a model


def load(model: str, source: Path) -> Any:
    """The model of a class of transformers that a folder holds, in float32 and eval mode.

    Raises:
        LabError: it cannot be read, or weights are missing.
    """
    import transformers

    try:
        loaded, report = getattr(transformers, model).from_pretrained(
            source, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, errors of safetensors
        reason = " ".join(str(error).split())[:160]
        raise LabError(f"{source}: cannot be read as a {model} of transformers: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise LabError(f"{source}: lacks weights of a {model}: {', '.join(missing[:5])}")
    return loaded.eval()


def settings_of(config: Any) -> dict[str, Any]:
    """A configuration of transformers as plain settings, without those that its family does not know."""
    usual = type(config)()
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in _UNTOLD and hasattr(usual, name)
    }


def image_settings(source: Path) -> dict[str, Any]:
    """What a checkpoint says about its images, nothing where it does not."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(source, local_files_only=True)[0])
    except OSError:
        return {}


def filled(role: str, spec: Mapping[str, Any], args: tuple[int, ...], weights: Weights) -> Any:
    """A part with these weights, built without values first: nothing is held or drawn twice.

    Raises:
        LabError: the weights are others than the part's.
    """
    with torch.device("meta"):
        part = build(role, spec, *args)
    try:
        part.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # a line for each mistake, after a heading
        first = str(error).splitlines()[1].strip()
        raise LabError(f"weights of the checkpoint do not fit {role} {spec['name']}: {first}") from error
    return part


def outline(config: Any) -> Any:
    """The causal language model of a configuration, without values."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def names_of_vocabulary(model: Any) -> tuple[str, str]:
    """Names of two weights of a causal language model: of its embedding and of its output layer."""
    names = {module: name for name, module in model.named_modules()}
    return f"{names[model.get_input_embeddings()]}.weight", f"{names[model.get_output_embeddings()]}.weight"


def text_decoder(
    config: Any, weights: Weights, tokenizer: Tokenizer, added: Mapping[int, int | None]
) -> tuple[dict[str, Any], Any]:
    """The language model of a checkpoint as the word `hf`, with rows for what the lab added to its tokenizer.

    Args:
        config: of the language model.
        weights: of the causal language model, under the names of transformers.
        tokenizer: the lab's.
        added: id of an added token -> id of the one it starts as, None for the mean of all.

    Returns:
        The specification and the part.
    """
    embedding, head = names_of_vocabulary(outline(config))
    tied = weights[embedding].data_ptr() == weights[head].data_ptr()
    size = max(len(weights[embedding]), len(tokenizer))
    rows = _with_rows(weights[embedding], size)
    mean = weights[embedding].mean(dim=0)
    for new, old in added.items():
        rows[new] = mean if old is None else rows[old]
    weights = {**weights, embedding: rows, head: rows if tied else _with_rows(weights[head], size)}
    settings = {**settings_of(config), "vocab_size": size, "tie_word_embeddings": tied}
    spec = {"name": "hf", "config": settings}
    ours = {f"model.{name}": value for name, value in weights.items()}
    return spec, filled("text_decoder", spec, (len(tokenizer),), ours)


def own_tokenizer(source: Path) -> tuple[Tokenizer, dict[int, int | None]]:
    """The checkpoint's tokenizer for the lab's sequences.

    One with a chat template stays as it is and gets the marks of images. Of any other one end, beginning and
    padding are renamed to the lab's, so that these have their ids and a generated end ends an answer, and the
    lab's other marks are added.

    Returns:
        The tokenizer; id of each added token -> id of the token it stands for, None if there is none.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        theirs = AutoTokenizer.from_pretrained(source, local_files_only=True)
        text = json.loads(theirs.backend_tokenizer.to_str())
    except Exception as error:  # OSError, ValueError; AttributeError of one without a fast form
        reason = " ".join(str(error).split())[:160]
        raise LabError(f"{source}: no tokenizer can be read there: {reason}") from error
    if theirs.chat_template not in (None, OWN_TEMPLATE):
        size = len(theirs)
        tokenizer = Tokenizer(theirs)
        return tokenizer, dict.fromkeys(range(size, len(tokenizer)))
    stands = {EOS: theirs.eos_token, BOS: theirs.bos_token, PAD: theirs.pad_token}
    renames: dict[str, str] = {}
    for mark, token in stands.items():
        if token is not None and mark not in theirs.get_vocab():
            renames.setdefault(token, mark)  # one token may be two: the end is worth more
    ours = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(_renamed(text, renames))))
    if theirs.unk_token is not None:
        ours.unk_token = renames.get(theirs.unk_token, theirs.unk_token)
    tokenizer = Tokenizer(ours)
    ids = theirs.get_vocab()
    added = {
        tokenizer[mark]: ids.get(stands.get(mark) or "")
        for mark in SPECIAL_TOKENS
        if tokenizer[mark] >= len(theirs)
    }
    return tokenizer, added


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A tree with other names in place of every string that is one of these."""
    match value:
        case str():
            return names.get(value, value)
        case list():
            return [_renamed(item, names) for item in value]
        case dict():
            return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    return value


def _with_rows(weight: Tensor, size: int) -> Tensor:
    """A copy of the weight (V, D) with `size` rows, new ones the mean of the old."""
    return torch.cat([weight, weight.mean(dim=0).expand(size - len(weight), -1)])
