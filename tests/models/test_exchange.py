"""Arms in the formats of transformers and diffusers, and checkpoints of theirs as arms: the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.errors import LabError
from lab.exchange.checkpoint import import_checkpoint
from lab.exchange.image_decoder import export_image_decoder
from lab.exchange.llava import export_llava
from lab.exchange.parts import own_tokenizer
from lab.models.arm import Arm, load_arm
from lab.models.generation import generate_text
from lab.registry import build
from lab.samples.batch import Batch, Places
from lab.samples.segments import BOS, EOS, PAD, SPECIAL_TOKENS, Sample, answer, image, question, special
from lab.samples.tokenizer import Tokenizer

NewArm = Callable[..., Arm]

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN = {**LLAMA, "num_key_value_heads": 1}
OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


def tower(family: str = "clip", **settings: Any) -> dict[str, Any]:
    """The specification of a tiny tower with random weights."""
    model_type = family if family == "dinov2" else f"{family}_vision_model"
    config = {"model_type": model_type, **TOWER, **STATISTICS}
    if family == "dinov2":
        del config["intermediate_size"]  # it has a ratio instead
    return {"name": "siglip" if family == "siglip" else "clip", "layer": -2, "config": config, **settings}


def draw(module: nn.Module) -> None:
    """Weights of a size at which an error shows."""
    for name, parameter in module.named_parameters():
        std = 0.05 if "lora" in name else 0.2
        nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=std)


def samples(size: int) -> list[Sample]:
    """An image and a question, two images and two turns, text alone."""
    generator = np.random.default_rng(0)
    one, two, three = (generator.random((3, size, size), np.float32) for _ in range(3))
    start = special(BOS)
    asked, said, further = question("what digit is blue ?"), answer("red"), question("how many digits")
    return [
        Sample("a", "vqa", (start, image(one), asked, said)),
        Sample("b", "vqa", (start, image(two), image(three), asked, said, further, said)),
        Sample("c", "vqa", (start, asked, said)),
    ]


@torch.no_grad()
def ours(arm: Arm, batch: Batch) -> Tensor:
    """Logits (B, T, V)."""
    model = arm.model.eval()
    return model.text_decoder.logits(model.states(batch, None))


@torch.no_grad()
def theirs(model: Any, arm: Arm, batch: Batch) -> Tensor:
    """Logits (B, T, V or more) of a LLaVA for the same ids and pixels."""
    ids = batch.ids.masked_fill(batch.read, model.config.image_token_id)
    pixels = normalised(arm.model.encoder, batch.pixels_read)
    return model(input_ids=ids, pixel_values=pixels, attention_mask=batch.mask.long()).logits


def normalised(encoder: Any, pixels: Tensor) -> Tensor:
    """Pixels as the encoder's tower gets them."""
    size = encoder.tower_size
    if pixels.shape[-1] != size:
        pixels = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return (pixels - encoder.mean) / encoder.deviation


def opened(folder: Path) -> Any:
    """The LLaVA in a folder, every weight of which must be there and used."""
    from transformers import LlavaForConditionalGeneration

    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return model.eval()


# -- arms as LLaVA -------------------------------------------------------------------------------------------

LORA = {"name": "llama", "dim": 32, "depth": 2, "num_heads": 2, "lora_rank": 4}
GPT2 = {"name": "hf", "config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}}
EXPORTS: dict[str, dict[str, dict[str, Any]]] = {
    "usual": {"encoder": tower(), "connector": {"name": "mlp"}},
    "class token": {"encoder": tower(keep_class=True, layer=-1)},
    "finer": {"encoder": tower(resolution=40)},
    "coarser": {"encoder": tower("siglip", resolution=16)},
    "siglip": {"encoder": tower("siglip", layer=1), "connector": {"name": "mlp"}},
    "dinov2": {"encoder": tower("dinov2", resolution=32)},
    "lora": {"encoder": tower(), "text_decoder": {**LORA, "tie_embeddings": False}},
    "lora on four bits": {"encoder": tower(), "text_decoder": {**LORA, "quantise": "nf4_simulated"}},
    "another family": {"encoder": tower(), "text_decoder": {**GPT2, "lora_rank": 2}},
    "tied elsewhere": {
        "encoder": tower(),
        "text_decoder": {"name": "hf", "config": {"model_type": "opt", "word_embed_proj_dim": 32, **OPT}},
    },
    "room for a token": {
        "encoder": tower(),
        "text_decoder": {"name": "hf", "config": {"model_type": "qwen2", "vocab_size": 200, **QWEN}},
    },
}


@pytest.mark.parametrize("case", EXPORTS)
def test_an_exported_arm_is_a_llava_with_its_logits(case: str, new_arm: NewArm, tmp_path: Path) -> None:
    arm = new_arm(**EXPORTS[case])
    draw(arm.model)
    notes = export_llava(arm, tmp_path)
    assert "draw" in notes[0]
    model, batch = opened(tmp_path), arm.collate(("vqa",))(samples(32))
    one, two = ours(arm, batch), theirs(model, arm, batch)
    size = one.shape[-1]
    assert two.shape[-1] == max(size, len(arm.tokenizer) + 1)
    assert one[batch.mask].std() > 0.3
    torch.testing.assert_close(two[..., :size][batch.mask], one[batch.mask], atol=1e-5, rtol=0)
    if two.shape[-1] > size:  # `<image>` is as unlikely as padding
        assert torch.equal(two[..., -1], two[..., arm.tokenizer[PAD]])


def test_the_exported_processor_lays_out_what_the_arm_was_trained_on(new_arm: NewArm, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    arm = new_arm(encoder=tower(), connector={"name": "mlp"})
    export_llava(arm, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8))
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": "what digit is blue ?"}]
    conversation = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "how many digits"}]},
    ]
    made = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
    sample = samples(24)[0]
    said = (*sample.segments[:1], image(pixels), *sample.segments[2:], question("how many digits"))
    batch = arm.collate(("vqa",))([Sample("a", "vqa", said)])
    expected = batch.ids.masked_fill(batch.read, processor.image_token_id)
    assert torch.equal(made["input_ids"], expected)
    assert processor.tokenizer.padding_side == "left"
    pixels_there = normalised(arm.model.encoder, batch.pixels_read)
    torch.testing.assert_close(made["pixel_values"], pixels_there, atol=1e-5, rtol=0)


def test_an_exported_arm_answers_as_it_did(new_arm: NewArm, tmp_path: Path) -> None:
    arm = new_arm(encoder=tower(), connector={"name": "mlp"})
    draw(arm.model)
    export_llava(arm, tmp_path)
    model = opened(tmp_path)
    prompts = [Sample(sample.id, "vqa", sample.segments[:-1]) for sample in samples(24)[:2]]
    batch = arm.collate(("vqa",), left=True)(prompts)
    expected = generate_text(arm.model.eval(), batch, arm.tokenizer[EOS], max_new_tokens=6)
    ids = model.generate(
        input_ids=batch.ids.masked_fill(batch.read, model.config.image_token_id),
        pixel_values=normalised(arm.model.encoder, batch.pixels_read),
        attention_mask=batch.mask.long(),
        max_new_tokens=6,
    )[:, batch.ids.shape[1] :]
    assert [row[: len(said)] for row, said in zip(ids.tolist(), expected, strict=True)] == expected
    assert any(expected)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "encoder patches is none of clip, siglip, dinov2"),
        ({"encoder": tower(pool=2)}, "encoder clip has pool: 2"),
        ({"encoder": tower(normalise=True)}, "encoder clip has normalise: true"),
        (
            {"encoder": tower(), "connector": {"name": "linear", "positions": True}},
            "linear has positions: true",
        ),
        ({"encoder": tower(), "connector": {"name": "mlp", "hidden_layers": 2}}, "mlp has hidden_layers: 2"),
        (
            {"encoder": tower(), "connector": {"name": "q_former"}},
            "connector q_former is none of linear, mlp",
        ),
        ({"encoder": tower(), "fusion": {"name": "sequence", "bidirectional": True}}, "bidirectional: true"),
        ({"encoder": tower(), "text_decoder": {**LORA, "adapter_dim": 4}}, "text_decoder llama has adapters"),
    ],
)
def test_what_a_llava_cannot_express_is_named(
    parts: dict[str, Any], said: str, new_arm: NewArm, tmp_path: Path
) -> None:
    with pytest.raises(LabError, match=f"^a LLaVA of transformers cannot express this arm: .*{said}"):
        export_llava(new_arm(**parts), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_register_tokens_and_other_output_layers_are_refused(new_arm: NewArm, tmp_path: Path) -> None:
    registers = tower("dinov2")
    registers["config"]["model_type"] = "dinov2_with_registers"
    with pytest.raises(LabError, match="4 register tokens"):
        export_llava(new_arm(encoder=registers), tmp_path)
    phi = {"name": "hf", "config": {"model_type": "phi", **LLAMA}}  # its output layer has a bias
    with pytest.raises(LabError, match="gives phi another output layer"):
        export_llava(new_arm(encoder=tower(), text_decoder=phi), tmp_path)


# -- checkpoints as arms -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer as checkpoints have them: byte pairs, marks of its own, and one more token for images."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Backend(BPE())
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), Decoder()
    marks = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = BpeTrainer(vocab_size=330, special_tokens=marks, initial_alphabet=ByteLevel.alphabet())
    backend.train_from_iterator(["USER: what digit is blue? ASSISTANT: the red one"] * 3, trainer)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


LLAVAS: dict[str, dict[str, Any]] = {
    "usual": {"vision_feature_layer": -2},
    "class token": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    "siglip": {"family": "siglip", "vision_feature_layer": 2, "vision_feature_select_strategy": "full"},
    "dinov2": {"family": "dinov2", "vision_feature_layer": -1},
    "one map": {"projector_hidden_act": "linear"},
    "without biases": {"multimodal_projector_bias": False},
    "tied": {"tie_word_embeddings": True},
    "spare rows": {"text": {"vocab_size": 360}},
    "another family": {"text": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}},
}


def write_llava(
    folder: Path, tokenizer: Any, *, family: str = "clip", text: Any = None, **settings: Any
) -> Any:
    """A tiny random LLaVA with its processor, as transformers saves them."""
    from transformers import AutoConfig, CLIPImageProcessor, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    vision = AutoConfig.for_model(family if family == "dinov2" else f"{family}_vision_model", **TOWER)
    text = {"model_type": "llama", "vocab_size": len(tokenizer), **LLAMA, **(text or {})}
    text.setdefault("tie_word_embeddings", settings.get("tie_word_embeddings", False))
    if text["model_type"] == "gpt2":
        text["vocab_size"] = len(tokenizer)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(**text),
        image_token_index=image_id,
        **settings,
    )
    torch.manual_seed(0)
    model = Llava(config).eval()
    draw(model)
    model.save_pretrained(folder)
    size = {"height": 24, "width": 24}
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, **STATISTICS)
    LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="default").save_pretrained(
        folder
    )
    return model


def their_prompt(tokenizer: Any, image_id: int, count: int) -> Tensor:
    """Ids (1, T) of a prompt as LLaVA has them."""
    before, after = (
        tokenizer.encode("USER: "),
        tokenizer.encode("\nwhat? ASSISTANT:", add_special_tokens=False),
    )
    return torch.tensor([[*before, *[image_id] * count, *after]])


def as_batch(ids: Tensor, image_id: int, pixels: Tensor) -> Batch:
    """Their prompt for a model of ours."""
    read = ids == image_id
    none, nothing = torch.zeros_like(read), torch.zeros(0, 3, 1, 1)
    image_of = read.long().cumsum(1).clamp(max=1) - 1
    prompt, task = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    places = Places.of(*(array.numpy() for array in (none, read, none, image_of)), 0)
    shown = (prompt, pixels, nothing, task, ("vqa",), ("prompt",))
    return Batch(ids, ~none, none, read, none, image_of, *shown, pad=0, places=places)


@pytest.mark.parametrize("case", LLAVAS)
def test_an_imported_llava_has_its_logits(case: str, foreign: Any, tmp_path: Path) -> None:
    model = write_llava(tmp_path / "llava", foreign, **LLAVAS[case])
    import_checkpoint(tmp_path / "llava", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    encoder: Any = arm.model.encoder
    image_id = model.config.image_token_id
    ids, pixels = their_prompt(foreign, image_id, arm.model.tokens_read), torch.rand(1, 3, 24, 24)
    batch = as_batch(ids, image_id, pixels)
    assert encoder.mean.flatten().tolist() == pytest.approx(STATISTICS["image_mean"])
    one, two = ours(arm, batch), theirs(model, arm, batch)
    known = len(foreign)
    assert two.std() > 0.3
    torch.testing.assert_close(one[..., :known], two[..., :known], atol=1e-4, rtol=0)


def test_an_imported_llava_goes_out_as_it_came(foreign: Any, tmp_path: Path) -> None:
    model = write_llava(tmp_path / "llava", foreign)
    import_checkpoint(tmp_path / "llava", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    assert export_llava(arm, tmp_path / "again") == []
    again = opened(tmp_path / "again")
    image_id = model.config.image_token_id
    assert again.config.image_token_id == image_id
    batch = as_batch(their_prompt(foreign, image_id, 9), image_id, torch.rand(1, 3, 24, 24))
    one, two = theirs(again, arm, batch), theirs(model, arm, batch)
    torch.testing.assert_close(one[..., : two.shape[-1]], two, atol=1e-5, rtol=0)


def test_marks_of_a_checkpoint_are_the_labs(foreign: Any, tmp_path: Path) -> None:
    """A generated end ends an answer; what the checkpoint has no token for starts as the mean of all."""
    write_llava(tmp_path / "llava", foreign)
    import_checkpoint(tmp_path / "llava", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    assert (arm.tokenizer[BOS], arm.tokenizer[EOS]) == (foreign.bos_token_id, foreign.eos_token_id)
    text = "what digit is blue? überall"
    assert list(arm.tokenizer.encode(text)) == foreign.encode(text, add_special_tokens=False)
    assert arm.tokenizer.decode(arm.tokenizer.encode(f"{text}{EOS} more")) == text
    new = [arm.tokenizer[mark] for mark in SPECIAL_TOKENS if mark not in (BOS, EOS)]
    assert min(new) == len(foreign)
    rows = arm.model.text_decoder.embed(torch.tensor(new))
    every = arm.model.text_decoder.embed(torch.arange(len(foreign)))
    torch.testing.assert_close(rows, every.mean(dim=0).expand_as(rows))


def test_a_checkpoint_keeps_its_chat_template(foreign: Any, tmp_path: Path) -> None:
    """Taken in, its conversations are laid out by its own template; given out again, by the same."""
    from copy import deepcopy

    from PIL import Image
    from transformers import AutoProcessor

    tokenizer = deepcopy(foreign)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ 'USER: ' + message['content'] }}{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
    )
    write_llava(tmp_path / "llava", tokenizer)
    import_checkpoint(tmp_path / "llava", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    assert arm.tokenizer[EOS] == foreign.eos_token_id
    assert len(arm.tokenizer) == len(foreign) + 3  # two marks of images, and padding
    batch = arm.collate(("vqa",))(samples(24)[:1])
    said = [one for one, mine in zip(batch.ids[0], batch.supervised[0], strict=True) if mine]
    assert foreign.decode(said) == " red</s>"
    export_llava(arm, tmp_path / "again")
    processor = AutoProcessor.from_pretrained(tmp_path / "again")
    picture = Image.fromarray(np.zeros((24, 24, 3), np.uint8))
    asked = [{"type": "image", "image": picture}, {"type": "text", "text": "what digit is blue ?"}]
    talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": "red"}]
    made = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(made["input_ids"], batch.ids.masked_fill(batch.read, processor.image_token_id))


def test_one_token_that_ends_and_begins_stays_the_end(foreign: Any, tmp_path: Path) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(foreign)
    tokenizer.bos_token = "</s>"  # as OPT has it
    write_llava(tmp_path / "llava", tokenizer)
    import_checkpoint(tmp_path / "llava", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    assert arm.tokenizer[EOS] == foreign.eos_token_id != arm.tokenizer[BOS]
    end, start = arm.model.text_decoder.embed(torch.tensor([arm.tokenizer[EOS], arm.tokenizer[BOS]]))
    assert torch.equal(end, start)


def write_blip2(folder: Path, tokenizer: Any, **vision: Any) -> Any:
    """A tiny random BLIP-2 with OPT, as transformers saves it."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
    )

    former = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**TOWER, **vision),
        qformer_config=Blip2QFormerConfig(**former),
        text_config=OPTConfig(vocab_size=len(tokenizer), word_embed_proj_dim=32, **OPT),
        num_query_tokens=5,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    draw(model)
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 24, "width": 24})
    Blip2Processor(images, tokenizer, num_query_tokens=5).save_pretrained(folder)
    return model


def test_an_imported_blip2_has_its_logits(foreign: Any, tmp_path: Path) -> None:
    model = write_blip2(tmp_path / "blip", foreign)
    import_checkpoint(tmp_path / "blip", tmp_path / "arm")
    arm = load_arm(tmp_path / "arm")
    image_id, pixels = model.config.image_token_id, torch.rand(1, 3, 24, 24)
    after = foreign.encode("Question: what? Answer:", add_special_tokens=False)
    ids = torch.tensor([[*[image_id] * 5, foreign.eos_token_id, *after]])
    encoder: Any = arm.model.encoder
    with torch.no_grad():
        two = model(input_ids=ids, pixel_values=(pixels - encoder.mean) / encoder.deviation).logits
    one = ours(arm, as_batch(ids, image_id, pixels))
    assert two.std() > 0.3
    torch.testing.assert_close(one[..., : len(foreign)], two, atol=1e-4, rtol=0)


def test_checkpoints_that_the_lab_has_no_word_for_are_named(foreign: Any, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no checkpoint of transformers can be read there"):
        import_checkpoint(tmp_path / "nothing", tmp_path / "arm")
    for number, (settings, said) in enumerate(
        [
            ({"vision_feature_layer": [-2, -1]}, r"its connector reads layers \[-2, -1\]"),
            ({"projector_hidden_act": "relu"}, "its connector's activation is relu"),
            ({"family": "siglip"}, "drops the first patch of a siglip tower"),
        ]
    ):
        write_llava(tmp_path / str(number), foreign, **settings)
        with pytest.raises(LabError, match=said):
            import_checkpoint(tmp_path / str(number), tmp_path / "arm")
    write_blip2(tmp_path / "blip", foreign, hidden_act="quick_gelu")
    with pytest.raises(LabError, match="activation of the encoder is quick_gelu; the lab has gelu"):
        import_checkpoint(tmp_path / "blip", tmp_path / "arm")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(LabError, match="a checkpoint of bert; the lab reads llava, blip-2"):
        import_checkpoint(tmp_path / "bert", tmp_path / "arm")


def test_a_tokenizer_that_has_the_labs_marks_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of_words(["one"])
    tokenizer.save(tmp_path)
    again, added = own_tokenizer(tmp_path)
    assert again.tokenizer.get_vocab() == tokenizer.tokenizer.get_vocab()
    assert added == {}


# -- image decoders ------------------------------------------------------------------------------------------

HALF = {"channels": 8, "shortcut": False}


def halves(word: str, encoder: dict[str, Any], decoder: dict[str, Any]) -> tuple[Any, Any]:
    """An encoder and an image decoder with random weights."""
    one = build("encoder", {"name": word, **encoder}, 16).eval()
    two = build("image_decoder", {"name": word, **decoder}, one.dim, one.num_tokens, 16).eval()
    return one, two


@torch.no_grad()
def test_an_exported_vq_is_a_vq_model(tmp_path: Path) -> None:
    from diffusers import VQModel

    encoder, decoder = halves("vq", HALF, HALF)
    assert export_image_decoder("vq", decoder, "vq", encoder, tmp_path) == []
    model = VQModel.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 16, 16)
    latents = model.encode(pixels * 2 - 1).latents
    tokens = encoder(pixels)
    grid = model.quantize(latents)[0]
    torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=0)
    drawn = (model.decode(latents).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(drawn, decoder.sample(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [(None, None), (2.0, None), (2.0, 2.0), (0.5, 3.0)])
@torch.no_grad()
def test_an_exported_vae_is_an_autoencoder_kl(scales: tuple[float | None, ...], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    encoder, decoder = halves(
        "vae", {**HALF, "patch": 2, "scale": scales[0]}, {**HALF, "patch": 2, "scale": scales[1]}
    )
    assert export_image_decoder("vae", decoder, "vae", encoder, tmp_path) == []
    model = AutoencoderKL.from_pretrained(tmp_path).eval()
    pixels = torch.rand(2, 3, 16, 16)
    latents = model.encode(pixels * 2 - 1).latent_dist.mode()
    tokens = encoder(pixels)
    scaled = functional.pixel_unshuffle(latents * model.config.scaling_factor, 2)
    torch.testing.assert_close(scaled.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=0)
    drawn = (model.decode(latents).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(drawn, decoder.sample(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_denoiser_of_a_diffusion_decoder_is_a_model_of_diffusers(tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    spec = {"name": "diffusion", "dim": 32, "depth": 2}
    decoder = build("image_decoder", spec, 24, 16, 32).eval()
    draw(decoder)
    (note,) = export_image_decoder("diffusion", decoder, "vit", nn.Identity(), tmp_path)
    assert "conditioning.safetensors" in note
    model = PixArtTransformer2DModel.from_pretrained(tmp_path / "denoiser").eval()
    inputs = {
        "hidden_states": torch.randn(2, 6, 32, 32),
        "encoder_hidden_states": torch.randn(2, 16, 32),
        "timestep": torch.tensor([10.0, 500.0]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    torch.testing.assert_close(model(**inputs).sample, decoder.denoiser(**inputs).sample, atol=1e-5, rtol=0)


def test_image_decoders_without_a_format_are_named(tmp_path: Path) -> None:
    own = build("image_decoder", "transformer", 24, 16, 32)
    with pytest.raises(LabError, match="image_decoder transformer: is the lab's own"):
        export_image_decoder("transformer", own, "vit", nn.Identity(), tmp_path)
    encoder, decoder = halves("vq", {"channels": 8}, {"channels": 8})
    with pytest.raises(LabError, match="shortcut: false"):
        export_image_decoder("vq", decoder, "vq", encoder, tmp_path)
    with pytest.raises(LabError, match="encodes too, but the arm's encoder is vit"):
        export_image_decoder("vq", decoder, "vit", encoder, tmp_path)
    encoder, decoder = halves("vq", {**HALF, "channels": 16}, HALF)
    with pytest.raises(LabError, match="the arm's encoder has others than its image decoder"):
        export_image_decoder("vq", decoder, "vq", encoder, tmp_path)
    encoder, decoder = halves("vq", {**HALF, "normalise": True}, HALF)
    with pytest.raises(LabError, match="does not put its codes on a sphere"):
        export_image_decoder("vq", decoder, "vq", encoder, tmp_path)
    assert not list(tmp_path.iterdir())
