"""Arms out of the lab and into it, as a person does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lab.cli as cli
from lab.models.arm import Arm
from lab.models.store import save_component
from lab.registry import build

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CLIP = {"name": "clip", "layer": -2, "config": {"model_type": "clip_vision_model", **TOWER}}
VQ = {"name": "vq", "channels": 8, "shortcut": False}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a picture."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save("picture.png")
    return tmp_path


def lab(*words: str) -> int:
    return cli.main(list(words))


def test_an_arm_goes_out_and_comes_back(
    new_arm: Callable[..., Arm], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlavaForConditionalGeneration

    output = here / ".lab" / "arms" / "mine" / "output" / "instruct" / "linear-understanding"
    new_arm(encoder=CLIP).save(output)
    assert lab("export", "mine", "llava") == 0
    said = capsys.readouterr().out
    assert said == "note: the visual head stays behind: a LLaVA answers and does not draw\nllava\n"
    assert LlavaForConditionalGeneration.from_pretrained(here / "llava").config.image_seq_length == 16
    assert lab("import", "llava", "--as", "back") == 0
    assert 'arm back: lab ask back IMAGE "QUESTION"' in capsys.readouterr().out
    answers = []
    for arm in ("mine", "back"):
        assert lab("ask", arm, "picture.png", "what digit is blue?") == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != "\n"
    assert not list(here.glob("**/.*.partial"))


def test_an_imported_arm_answers_in_any_words(
    here: Path, capsys: pytest.CaptureFixture[str], foreign_llava: Path
) -> None:
    assert lab("import", str(foreign_llava), "--as", "theirs") == 0
    foreign_llava.rename(here / "moved")  # the arm has all it needs
    capsys.readouterr()
    assert lab("ask", "theirs", "picture.png", "Überall?") == 0
    assert capsys.readouterr().out


def test_an_image_decoder_goes_out(new_arm: Callable[..., Arm], here: Path) -> None:
    from diffusers import VQModel

    arm = new_arm(encoder={**VQ, "downsample": 8})
    encoder: Any = arm.model.encoder
    output = here / "arm" / "output"
    arm.save(output / "instruct" / "a-b")
    args = (encoder.dim, encoder.num_tokens, 32)
    save_component(output / "image_decoder", "image_decoder", VQ, args, build("image_decoder", VQ, *args))
    assert lab("export", "arm", "vq", "--part", "image_decoder") == 0
    model = VQModel.from_pretrained(here / "vq")
    assert torch.equal(model.quantize.embedding.weight, encoder.codebook)


def test_mistakes_are_one_line(
    new_arm: Callable[..., Arm], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_arm().save(here / "arm" / "output" / "instruct" / "a-b")
    (here / "full").mkdir()
    (here / "full" / "file").touch()
    for words, said in (
        (("export", "arm", "llava"), "cannot express this arm: encoder patches is none of clip"),
        (("export", "arm", "full"), "full: exists already"),
        (("export", "arm", "out", "--part", "image_decoder"), "no image decoder there"),
        (("export", "other", "out"), "no trained arm 'other'"),
        (("import", "nothing", "--as", "x"), "no checkpoint of transformers can be read there"),
        (("import", "nothing", "--as", "a/b"), "'a/b' is no name for an arm"),
    ):
        assert lab(*words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (here / "out").exists()
    assert not (here / ".lab" / "arms" / "x").exists()


@pytest.fixture
def foreign_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with a tokenizer of byte pairs and no unknown token, as transformers saves it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    backend = Backend(BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), Decoder()
    marks = ["<s>", "</s>", "<image>"]
    trainer = BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=ByteLevel.alphabet())
    backend.train_from_iterator(["what digit is blue"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **sizes),
        image_token_index=2,
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "llava"
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(CLIPImageProcessor(), tokenizer, patch_size=8).save_pretrained(folder)
    return folder
