"""The whole design space: combinations that the rules allow do work, and all others are refused in time.

Words alone, in default settings, make 36,288 combinations: 9 encoders, 8 connectors, 2 text decoders, 3
fusions, 5 visual heads or none, 6 image decoders or none, 2 kinds of targets. `lab.models.compatibility`
allows 13,872 of them. The first test draws `EXAMPLES` systems out of what it allows, in tiny settings that
reach further (shared feedback, codes of the connector, adapters, tokens of another width, ...), and then one
for each word that was not drawn, but for those that load a checkpoint. The second goes through all words and
tries `REFUSED` of the combinations that it does not allow. `pytest -s` prints the numbers as they are now.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lab.config import Params
from lab.errors import LabError
from lab.evaluation.understanding import prompt_of
from lab.graph.small import small_params
from lab.graph.system import System
from lab.models.arm import Arm, load_arm, new_arm
from lab.models.autoencoder import ImageAutoencoder
from lab.models.compatibility import PARTS, Combination, Part, mistakes
from lab.models.generation import generate_image_tokens, generate_text
from lab.registry import ROLES, build, describe, words
from lab.samples.batch import Batch
from lab.samples.regions import Pixels
from lab.samples.segments import EOS, IMAGE_START, Sample, special
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, read_split, write_world
from lab.training.modules import ImageDecoderTraining, UnifiedTraining

EXAMPLES = 30  # systems drawn at random, each trained for a few steps
REFUSED = 60  # combinations drawn at random out of those that are not allowed
STEPS = 6
WORLDS = {32: World(variants=1), 16: World(image_size=16, grid=1, max_digits=1, variants=1)}
ADDED = {"lora": "lora_rank", "adapters": "adapter_dim"}  # to a text decoder, and the setting that adds it


@cache
def tiny(size: int) -> dict[str, list[Part]]:
    """Parts of each role for images of a size, in settings that are quick; new words come in their own.

    Encoders give 16 or 4 tokens, from 8 to 48 wide; language models are 16 or 32 wide.
    """
    patch, block = size // 4, {"depth": 1, "num_heads": 2}
    grid: dict[str, Any] = {"name": "patches", "patch_size": patch, "dim": 16}
    blocks = {"name": "vit", "patch_size": 2 * patch, "dim": 32, **block}
    queries: dict[str, Any] = {"mapper_dim": 16, "mapper_depth": 1, "num_heads": 2}
    settings_of: dict[str, dict[str, list[dict[str, Any]]]] = {
        "encoder": {
            "vit": [
                {"patch_size": patch, "dim": 16, **block},
                {**blocks, "stem": "linear", "normalise": True},
            ],
            "patches": [grid, {**grid, "patch_size": 2 * patch, "dim": 24}],
            "timm": [{"model": "test_vit", "settings": {"patch_size": 2 * patch, "embed_dim": 16, **block}}],
            "vq": [{"downsample": patch, "channels": 4, "num_codes": 12, "dim": 8}],
            "vae": [
                {"downsample": patch, "channels": 4},
                {"downsample": patch // 2, "channels": 4, "patch": 2},
            ],
            "ensemble": [
                {"parts": [grid, blocks]},
                {"parts": [grid, {**grid, "patch_size": 2 * patch}], "join": "sequence"},
            ],
        },
        "connector": {
            "linear": [{"positions": True}, {}],
            "q_former": [
                {"num_queries": 4, "dim": 16, "num_heads": 2, "instruction": instruction}
                for instruction in (False, True)
            ],
            "perceiver": [{"num_latents": 4, **block}],
            "causal_transformer": [
                {"num_queries": 4, "dim": 16, "codes": codes, "code_dim": 8, **block} for codes in (0, 12)
            ],
            "pool": [{}, {"mode": "concat", "grid": 1}],
            "abstractor": [{"grid": 2, "dim": 16, "depth": 1}],
        },
        "text_decoder": {
            "llama": [
                {"dim": 32, "depth": 2, "num_heads": 2},
                {"dim": 16, "depth": 2, "num_heads": 2, "lora_rank": 2},
                {"dim": 32, "depth": 1, "num_heads": 2, "adapter_dim": 4},
                {"dim": 16, "depth": 1, "num_heads": 2, "lora_rank": 2, "quantise": "nf4_simulated"},
            ]
        },
        "fusion": {
            "sequence": [{}, {"bidirectional": True, "one_position": True}],
            "cross_attention": [
                {"every": 1, "head_dim": 8, "num_heads": 2, "dim_visual": width} for width in (None, 24)
            ],
            "prefix": [{"num_heads": 2}],
        },
        "visual_head": {
            "regression": [
                {},
                {"feedback": "shared"},
                {"loss": "cosine", "normalise": True, "depth": 1},
            ],
            "diffusion": [
                {"width": 16, "depth": 1, "steps": 2, "feedback": feedback} for feedback in ("own", "shared")
            ],
            "flow": [{"steps": 2, "process": process} for process in ("flow", "epsilon")],
            "queries": [
                *({"mapper": mapper, "num_queries": 4, **queries} for mapper in ("linear", "encoder")),
                *({"loss": loss, "num_queries": 3, **queries} for loss in ("norm", "decoder")),
            ],
            "codebook": [{"codes": 12, "feedback": feedback} for feedback in ("own", "shared")],
        },
        "image_decoder": {
            "transformer": [{"dim": 16, "num_heads": 2}],
            "diffusion": [{"patch_size": 4, "dim": 16, "steps": 2, **block}],
            "detokenizer": [{"image_dim": 16, "dim": 16, "pixel_settings": {"dim": 16}, **block}],
            "vq": [{"channels": 4}],
            "vae": [{"channels": 4, "patch": patch} for patch in (1, 2)],
        },
    }
    found = {
        role: [
            Part.of(role, {**settings, "name": word})
            for word in words(role)
            if not loads(role, word)
            for settings in settings_of[role].get(word, [{}])
        ]
        for role in ROLES
    }
    return found | {role: [Part(role), *found[role]] for role in ("visual_head", "image_decoder")}


def loads(role: str, word: str) -> bool:
    """Whether a part loads a checkpoint by default; tests/components has small ones for these."""
    return any(one.name == "path" and one.default for one in describe(role, word).parameters)


@cache
def allowed(size: int) -> list[Combination]:
    """What the rules allow, but for the choice of text decoder and fusion, which are the plainest here."""
    parts = tiny(size)
    sequence = next(part for part in parts["fusion"] if part.word == "sequence")
    plain = {"text_decoder": parts["text_decoder"][:1], "fusion": [sequence]}
    every = every_combination(parts | plain, size)
    return [one for one in every if not any(broken(one) for broken, _ in PARTS)]


def every_combination(parts: Mapping[str, list[Part]], size: int) -> Iterator[Combination]:
    for targets in ("encoder", "connector"):
        for chosen in product(*parts.values()):
            named: dict[str, Any] = dict(zip(parts, chosen, strict=True))
            yield Combination(**named, targets=targets, image_size=size)


@st.composite
def systems(draw: st.DrawFn) -> Combination:
    """Draw role after role, words evenly from what those before them allow."""
    pick = draw(st.randoms(use_true_random=True)).choice
    size = pick([32, 16])
    left = allowed(size)
    for role in ("visual_head", "encoder", "connector", "image_decoder"):
        word = pick(sorted({getattr(one, role).word for one in left}))
        left = [one for one in left if getattr(one, role).word == word]
    rest: dict[str, Any] = {role: pick(tiny(size)[role]) for role in ("text_decoder", "fusion")}
    chosen = replace(pick(left), **rest)
    assume(not mistakes(chosen))
    return chosen


def with_word(role: str, word: str) -> Combination:
    """The first allowed combination that has a word."""
    part = next(part for part in tiny(32)[role] if part.word == word)
    changed: dict[str, Any] = {role: part}
    found = (replace(one, **changed) for one in allowed(32))
    return next(one for one in found if not mistakes(one))


def params_of(drawn: Combination) -> Params:
    """A combination as a pipeline, which has to pass all checks of one."""
    parts = {role: getattr(drawn, role) for role in ROLES}
    head, source = drawn.visual_head, drawn.source
    # what makes codes and latents learns along with the image decoder, which some heads need beforehand
    paired = source.word in ("vq", "vae", "causal_transformer") or head["loss"] == "decoder"
    tokenizer = [source.role] if head and paired else []
    added = [f"text_decoder.{name}" for name, setting in ADDED.items() if drawn.text_decoder[setting]]
    joint = [role for role in ("connector", "fusion", "visual_head") if parts[role] and role not in tokenizer]
    joint += [*added, "text_decoder.image_marks"] if added else ["text_decoder"]
    stages: dict[str, Any] = {
        "encoder": None if drawn.encoder.word in ("vq", "vae") else {},
        "text_decoder": {},
        "image_decoder": {"trainable": [*tokenizer, "image_decoder"], "noise": 0.0} if head else None,
        "align": None,
        "instruct": {"trainable": joint, "image_weight": 1.0},
    }
    order = [name for name, section in stages.items() if section is not None]
    if source.role in joint and head:  # the image decoder follows what it reads
        order.append(order.pop(order.index("image_decoder")))
    world = WORLDS[drawn.image_size]
    small = {
        **{role: {**part.settings, "name": part.word} if part else None for role, part in parts.items()},
        "targets": drawn.targets,
        "mix": {"vqa": 1, **({"text_to_image": 1} if head else {})},
        "stages": stages,
        "recipe": ["data", "judge", *order, "evaluate"],
        "world": {"image_size": world.image_size, "grid": world.grid, "max_digits": world.max_digits},
    }
    return small_params(System("drawn", "", "", (), small, None), Path("drawn.yaml"), [])


# -- what is allowed works -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, SceneTasks]:
    """The built-in world in two sizes, 24 scenes of each."""
    found = {}
    for size, world in WORLDS.items():
        folder = tmp_path_factory.mktemp(f"world{size}")
        write_world(folder, world, {"train": 24, "validation": 4, "test": 4}, seed=0)
        found[size] = SceneTasks(read_split(folder, world, "train"), turns=2)
    return found


def test_what_is_allowed_works(scenes: dict[int, SceneTasks], tmp_path: Path) -> None:
    """It is built, learns, answers, draws, comes back from disk the same, and never looks ahead."""
    seen: Counter[tuple[str, str]] = Counter()

    def check(drawn: Combination) -> None:
        seen.update((role, getattr(drawn, role).word) for role in ROLES)
        check_system(drawn, scenes[drawn.image_size], tmp_path / f"arm{seen.total()}")

    options: dict[str, Any] = {
        "max_examples": EXAMPLES,
        "derandomize": True,
        "deadline": None,
        "database": None,
    }
    quiet = settings(**options, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    quiet(given(systems())(check))()
    for role in ROLES:
        for word in sorted({part.word for part in tiny(32)[role]}):
            if (role, word) not in seen:
                check(with_word(role, word))
    print(f"\n{seen.total() // len(ROLES)} systems out of {len(allowed(32)) + len(allowed(16))}, with")
    for (role, word), count in sorted(seen.items()):
        print(f"  {role} {word or 'none'}: {count}")


def check_system(drawn: Combination, tasks: SceneTasks, folder: Path) -> None:
    params = params_of(drawn)
    arm = new_arm(params, params.connectors[0], {}, Tokenizer.of_words(tasks.language.vocabulary()))
    batch = batch_of(arm, tasks)
    decoder = learn_to_decode(arm, params, tasks) if drawn.visual_head else None
    learn(arm, params, batch)
    check_causal(arm, batch)
    check_generation(arm, decoder, tasks)
    check_saved(arm, batch, tasks, folder)


def batch_of(arm: Arm, tasks: SceneTasks) -> Batch:
    """A row of each task that the system can do."""
    names = ["vqa", "documents", "text", *(["text_to_image", "edit"] if arm.model.visual_head else [])]
    return arm.collate(tuple(tasks.tasks))([tasks.sample(name, row, 0) for row, name in enumerate(names)])


def learn_to_decode(arm: Arm, params: Params, tasks: SceneTasks) -> Any:
    """Stage image_decoder: it learns, alone or with what makes the tokens; then the head sees some tokens."""
    model, stage = arm.model, params.stages.image_decoder
    assert stage is not None
    connector: Any = model.connector if params.targets == "connector" else None
    pixels = Pixels(torch.from_numpy(tasks.split.pixels(np.arange(6))), ())
    with torch.no_grad():
        _, count, width = model.eval().image_tokens(pixels.pixels_drawn).shape
    spec = params.spec("image_decoder", str(params.image_decoder))
    decoder = build("image_decoder", spec, width, count, params.world.image_size)
    schedule = {"learning_rates": {"": 5e-4}, "steps": STEPS, "warmup": 0, "weight_decay": 0.0}
    autoencoder = ImageAutoencoder(model.encoder, connector, decoder)
    module = ImageDecoderTraining(autoencoder, stage.noise, stage.trainable, **schedule)
    fit(module, lambda: module.training_step(pixels, 0))
    decoder.eval().requires_grad_(False)
    source = model.connector if params.targets == "connector" else model.encoder
    assert model.visual_head is not None
    with torch.no_grad():
        tokens = model.eval().image_tokens(pixels.pixels_drawn)
        model.visual_head.prepare(tokens, getattr(source, "codebook", None))
    if model.visual_head.through_decoder:
        model.image_decoder = decoder
    return decoder


def learn(arm: Arm, params: Params, batch: Batch) -> None:
    """Stage instruct, on one batch."""
    stage = params.stages.instruct
    assert stage is not None
    rates = dict.fromkeys(stage.learning_rate, 5e-3)
    module = UnifiedTraining.of(
        arm, replace(stage, learning_rate=rates, steps=10 * STEPS, warmup=0, weight_decay=0.0)
    )
    frozen = {name: p.clone() for name, p in arm.model.named_parameters() if not p.requires_grad}
    moving = (
        params.targets == "connector" and "connector" in stage.trainable
    )  # as the model learns to draw them

    def loss() -> Tensor:
        return arm.model(batch).text if moving and not module.training else module.training_step(batch, 0)

    fit(module, loss)
    assert all(torch.equal(p, frozen[name]) for name, p in arm.model.named_parameters() if name in frozen)


def fit(module: Any, loss: Callable[[], Tensor]) -> None:
    """A few steps on one batch, after which the loss is lower than before."""

    def measured() -> float:
        module.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            return float(loss())

    before = measured()
    module.train()
    module.on_train_start()
    torch.manual_seed(1)
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert measured() < before


@torch.no_grad()
def check_causal(arm: Arm, batch: Batch) -> None:
    """A word, a picture or a drawn token changes no state before it."""
    model = arm.model.eval()
    torch.manual_seed(0)
    drawn, _ = model.slot_inputs(model.targets(batch))
    before = model.states(batch, drawn)  # (B, T, D)

    def unchanged_until(column: Tensor, after: Tensor, changes: bool = True) -> None:
        """Rows are as before up to `column` (B,), and not at it, unless it is beyond the row."""
        place = torch.arange(before.shape[1]).expand(before.shape[:2])
        earlier = (place < column.unsqueeze(1)) & batch.mask
        torch.testing.assert_close(after[earlier], before[earlier], rtol=0, atol=1e-5)
        rows = (column < batch.mask.sum(dim=1)).nonzero().flatten()
        assert len(rows)
        assert not changes or (after[rows, column[rows]] != before[rows, column[rows]]).any(dim=1).all()

    end = batch.mask.sum(dim=1)  # (B,)
    last = (batch.supervised & (batch.ids != arm.image_marks[0])).long().cumsum(dim=1).argmax(dim=1)
    ids = batch.ids.clone()
    rows = torch.arange(len(ids))
    ids[rows, last] = (ids[rows, last] + 7) % len(arm.tokenizer)
    unchanged_until(last, model.states(replace(batch, ids=ids), drawn))

    changed = model.states(replace(batch, pixels_read=1 - batch.pixels_read), drawn)
    reads = batch.image.amax(dim=1) >= 0
    first = (batch.image >= 0).long().argmax(dim=1) + int(
        model.fusion.in_sequence
    )  # of its tokens, or its mark
    coded = any(getattr(part, "codebook", None) is not None for part in (model.encoder, model.connector))
    unchanged_until(torch.where(reads, first, end), changed, changes=not coded)  # a code may stay the same

    if drawn is not None:
        slots = torch.where(batch.drawn.any(dim=1), batch.drawn.long().argmax(dim=1), end)
        further = 0 if arm.model.visual_head.bidirectional else model.tokens_drawn - 1  # type: ignore[union-attr]
        moved = drawn.clone()
        moved[:, -1] += 1.0
        unchanged_until(torch.where(slots < end, slots + further, end), model.states(batch, moved))


@torch.no_grad()
def check_generation(arm: Arm, decoder: Any, tasks: SceneTasks) -> None:
    """It says words, and draws what its seeds say, to the pixel."""
    model = arm.model.eval()
    answers = said(arm, tasks)
    assert all(0 <= token < len(arm.tokenizer) for ids in answers for token in ids)
    if decoder is None:
        return
    tokens = drawn_tokens(arm, tasks, [5, 6])
    expected = model.image_tokens(torch.from_numpy(tasks.split.pixels(np.arange(2))))
    assert tokens.shape == expected.shape
    assert tokens.isfinite().all()
    assert torch.equal(tokens, drawn_tokens(arm, tasks, [5, 6]))
    if (codebook := getattr(model.visual_head, "codebook", None)) is not None:
        assert (tokens.unsqueeze(2) - codebook).abs().amax(dim=3).amin(dim=2).max() < 1e-5
    pixels = decoder.sample(tokens, torch.Generator().manual_seed(0))
    assert pixels.shape == (2, 3, model.encoder.image_size, model.encoder.image_size)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def said(arm: Arm, tasks: SceneTasks) -> list[list[int]]:
    samples = [prompt_of(tasks.sample(name, 1, 0)) for name in ("vqa", "text")]
    prompts = arm.collate(tuple(tasks.tasks), left=True)(samples)
    return generate_text(arm.model, prompts, arm.tokenizer[EOS], max_new_tokens=4)


def drawn_tokens(arm: Arm, tasks: SceneTasks, seeds: list[int]) -> Tensor:
    """Of a request for an image, and of one to edit an image."""
    samples = [up_to_image(tasks.sample(name, 1, 0)) for name in ("text_to_image", "edit")]
    return generate_image_tokens(arm.model, arm.collate(tuple(tasks.tasks), left=True)(samples), seeds)


def up_to_image(sample: Sample) -> Sample:
    """The sample as far as the image to draw, which is asked for."""
    parts = sample.segments
    place = next(i for i, part in enumerate(parts) if part.pixels is not None and part.supervised)
    return replace(sample, segments=(*parts[:place], special(IMAGE_START)))


@torch.no_grad()
def check_saved(arm: Arm, batch: Batch, tasks: SceneTasks, folder: Path) -> None:
    """What comes back from disk is the same, and gives the same losses, words and tokens."""
    arm.save(folder)
    torch.manual_seed(99)  # what is built on load must not matter
    again = load_arm(folder, arm.model.image_decoder)
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in arm.model.state_dict().items())
    assert weights.keys() == arm.model.state_dict().keys()
    found = []
    for model in (arm.model, again.model):  # convolutions round as their memory lies
        torch.manual_seed(0)
        losses = model(batch)
        found.append(torch.stack([losses.text_sum, losses.image_sum]))
    torch.testing.assert_close(*found)
    assert said(arm, tasks) == said(again, tasks)
    if arm.model.visual_head is not None:
        torch.testing.assert_close(drawn_tokens(again, tasks, [3, 4]), drawn_tokens(arm, tasks, [3, 4]))


# -- what is not allowed is refused --------------------------------------------------------------------------


def test_what_is_not_allowed_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """All words with all words, in default settings: a sample of those that do not fit is refused by name."""
    parts = {role: [Part.of(role, word) for word in words(role)] for role in ROLES}
    parts["visual_head"].append(Part("visual_head"))
    parts["image_decoder"].append(Part("image_decoder"))
    every = list(every_combination(parts, 32))
    refused = [one for one in every if any(broken(one) for broken, _ in PARTS)]
    print(f"\n{len(every)} combinations of words in default settings, {len(every) - len(refused)} allowed")

    monkeypatch.setattr("lab.registry.build", lambda *args: pytest.fail("a part was built"))
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *args: pytest.fail("a module was made"))
    for combination in random.Random(0).sample(refused, REFUSED):
        small: Mapping[str, Any] = {
            **{role: getattr(combination, role).word or None for role in ROLES},
            "targets": combination.targets,
            "stages": {"instruct": {"trainable": ["connector", "text_decoder", "fusion"]}},
        }
        with pytest.raises(LabError) as caught:
            small_params(System("mine", "", "", (), dict(small), None), Path("mine.yaml"), [])
        for mistake in mistakes(combination):
            assert mistake in str(caught.value)
        assert "\n" not in str(caught.value)
