"""Cached features: the same training without the encoder, and no cache that is of something else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lab.config import check_params, load_params
from lab.errors import LabError
from lab.graph.context import prepare
from lab.graph.execution import run_stage
from lab.graph.features.images import Images, check_constant, images_for
from lab.graph.features.stage import features_of
from lab.graph.features.timing import Times
from lab.models import cached
from lab.models.store import load_component
from lab.samples import features
from lab.samples.batch import images_of
from lab.samples.features import Features
from lab.samples.segments import Picture

RECIPE = ["data", "judge", "encoder", "text_decoder", "image_decoder"]
CACHED = [*RECIPE, "align_features", "align", "instruct_features", "instruct", "evaluate"]
ARM = ("linear", "understanding")
READS = {"visual_head": None, "image_decoder": None}

Pipeline = Callable[..., Path]


@pytest.fixture
def pipeline(
    tmp_path: Path, tiny_pipeline: Path, tiny_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Pipeline:
    """A pipeline whose pretrained parts are there; without a visual head it only reads."""

    def make(name: str = "cached", /, **changes: Any) -> Path:
        folder = tmp_path / name
        for stage in RECIPE:
            shutil.copytree(tiny_pipeline / "output" / stage, folder / "output" / stage)
        tree = {**tiny_params, "recipe": CACHED}
        tree["stages"] = {**tree["stages"], "features": {"cache": "on"}}
        for key, value in changes.items():
            head, _, below = key.partition("__")
            tree[head] = {**tree[head], below: value} if below else value
        if tree["visual_head"] is None:
            reads = {"mix": {"caption": 1}, "trainable": ["connector"]}
            tree["mixes"] = {"understanding": {"caption": 1, "vqa": 2}}
            tree["stages"]["align"] = tree["stages"]["align"] | reads
            tree["stages"]["instruct"] = {**tree["stages"]["instruct"], "trainable": reads["trainable"]}
        (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        monkeypatch.chdir(folder)
        return folder

    return make


def run_all() -> None:
    for stage, words in (("align", ARM[:1]), ("instruct", ARM)):
        run_stage(f"{stage}_features", *words[1:])
        run_stage(stage, *words)


def weights(folder: Path, stage: str) -> dict[str, bytes]:
    """Name -> content of every file of weights."""
    place = folder / "output" / stage / "-".join(ARM[: 1 if stage == "align" else 2])
    return {
        file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("model.safetensors")
    }


def numbers(folder: Path, stage: str) -> dict[str, float]:
    place = folder / "metrics" / stage / f"{'-'.join(ARM[: 1 if stage == 'align' else 2])}.json"
    found: dict[str, float] = json.loads(place.read_text())
    return {name: value for name, value in found.items() if name.startswith(("validation", "train"))}


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pixels, and no weights of an encoder."""

    def pixels(self: Picture) -> None:
        raise AssertionError("an image was made")

    from lab.models import arm

    load = arm.load_component

    def load_component(folder: Path) -> Any:
        assert folder.name != "encoder", "the encoder was loaded"
        return load(folder)

    monkeypatch.setattr(Picture, "pixels", property(pixels))
    monkeypatch.setattr(arm, "load_component", load_component)


def test_training_is_the_same_and_sees_neither_pixels_nor_encoder(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32: all weights of both stages and all held-out losses are those of the uncached run, bit for bit."""
    plain = pipeline("plain", stages__features={"cache": "off"})
    run_all()
    folder = pipeline()
    run_stage("align_features")
    run_stage("instruct_features", "understanding")
    with monkeypatch.context() as patch:
        forbid(patch)
        run_stage("align", "linear")
        run_stage("instruct", *ARM)
    for stage in ("align", "instruct"):
        assert weights(folder, stage) == weights(plain, stage)
        assert "encoder/model.safetensors" in weights(folder, stage)
        assert numbers(folder, stage) == numbers(plain, stage)


def test_a_recipe_without_these_stages_learns_the_same(pipeline: Pipeline) -> None:
    """Apart from the noise that a visual head draws, which begins anew here, and here is none."""
    recipe = ["data", "encoder", "text_decoder", "instruct", "evaluate"]
    plain = pipeline("plain", recipe=recipe, **READS)
    run_stage("instruct", *ARM)
    folder = pipeline(recipe=[*recipe[:3], "instruct_features", *recipe[3:]], **READS)
    run_stage("instruct_features", "understanding")
    run_stage("instruct", *ARM)
    assert weights(folder, "instruct") == weights(plain, "instruct")


def test_features_are_pooled_where_connectors_begin_with_that(pipeline: Pipeline) -> None:
    parts = {
        "recipe": ["data", "encoder", "text_decoder", "instruct_features", "instruct", "evaluate"],
        "connectors": ["pool"],
        **READS,
    }
    found = {}
    for cache in ("off", "on"):
        folder = pipeline(cache, stages__features={"cache": cache}, **parts)
        run_stage("instruct_features", "pool", "understanding")
        run_stage("instruct", "pool", "understanding")
        place = folder / "output" / "instruct" / "pool-understanding"
        found[cache] = {
            role: load_file(place / role / "model.safetensors") for role in ("connector", "text_decoder")
        }
    record = json.loads((folder / "output/instruct_features/pool-understanding/features.json").read_text())
    assert record["shape"] == [4, 32]  # of 16 tokens
    torch.testing.assert_close(found["on"], found["off"], rtol=0, atol=0)


def test_bf16_rounds_features_alone(pipeline: Pipeline) -> None:
    losses = {}
    for name, settings in (("exact", {"cache": "off"}), ("rounded", {"cache": "on", "dtype": "bf16"})):
        folder = pipeline(name, stages__features=settings)
        run_stage("align_features")
        run_stage("align", "linear")
        losses[name] = numbers(folder, "align")
    assert losses["rounded"] != losses["exact"]
    assert losses["rounded"] == pytest.approx(losses["exact"], rel=1e-2)


def test_an_encoder_that_nobody_trained_is_passed_on(pipeline: Pipeline) -> None:
    recipe = ["data", "text_decoder", "align_features", "align", "instruct_features", "instruct", "evaluate"]
    arms = {}
    for cache in ("off", "on"):
        folder = pipeline(cache, stages__features={"cache": cache}, recipe=recipe, **READS)
        run_all()
        arms[cache] = weights(folder, "instruct")
    assert arms["on"] == arms["off"]


@pytest.fixture
def made(pipeline: Pipeline) -> Path:
    """A pipeline with features for `align`."""
    folder = pipeline()
    run_stage("align_features")
    return folder


def opened(folder: Path, **changes: Any) -> Features | None:
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    tree["stages"]["features"] |= changes
    return features_of(prepare(folder, check_params(tree), "align", "linear"))


def test_a_stale_cache_is_refused_and_what_changed_is_named(made: Path) -> None:
    assert opened(made) is not None
    with pytest.raises(LabError, match=r"features of something else; dtype \(fp32 there, bf16 now\)"):
        opened(made, dtype="bf16")
    file = made / "output" / "encoder" / "model.safetensors"
    state = load_file(file)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, file)
    with pytest.raises(LabError, match=r"something else; encoder weights \("):
        opened(made)
    save_file(state, file)
    assert opened(made) is not None
    (made / "output" / "data" / "more").write_text("data")
    with pytest.raises(LabError, match=r"something else; data \("):
        opened(made)


def test_what_is_not_cached_leaves_an_empty_output(pipeline: Pipeline) -> None:
    folder = pipeline(stages__features={"cache": "off"})
    found = run_stage("align_features")
    assert found["cache/cached"] == 0
    assert {file.name for file in (folder / "output/align_features").iterdir()} == {
        "features.json",
        "node.json",
    }
    assert opened(folder) is None


def test_auto_decides_by_what_it_measured_and_says_so(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pipeline(stages__features={"cache": "auto"})
    found = run_stage("align_features")
    cheaper = found["cache/seconds_with"] < found["cache/seconds_without"]
    assert found["cache/cached"] == cheaper
    assert (opened(folder) is not None) == cheaper
    said = capsys.readouterr().out
    assert f"align_features: {'caches' if cheaper else 'does not cache'} 100 images" in said
    assert "ms to make and encode" in said


def test_a_cache_pays_by_uses_not_by_images() -> None:
    slow = Times(encoding=2e-3, writing=1e-3, reading=1e-4)
    assert slow.totals(images=100, uses=100) == pytest.approx((0.2, 0.31))
    assert slow.totals(images=100, uses=1000) == pytest.approx((2.0, 0.4))


def killed_after(shards: int, folder: Path) -> None:
    """The stage, in a process of its own that is killed when so many shards are whole."""
    script = f"""
import os, signal
from lab.samples import features
features.SHARD_BYTES = 1
from lab.graph.execution import run_stage
write = features.FeatureWriter._write
def stop(self):
    write(self)
    if self.shards == {shards} and ".lab" in self.work.parts:  # not those that are written to take the time
        os.kill(os.getpid(), signal.SIGKILL)
features.FeatureWriter._write = stop
run_stage("align_features")
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=folder, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_a_killed_stage_goes_on_after_its_last_whole_shard(
    pipeline: Pipeline, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pipeline("killed")
    killed_after(2, folder)
    assert not (folder / "output" / "align_features").exists()
    work = prepare(folder, load_params(folder / "params.yaml"), "align_features").node.work
    assert list(work.parent.iterdir()) == [work]  # where the next attempt looks
    assert {file.name for file in work.iterdir()} == {"shard-00000.safetensors", "shard-00001.safetensors"}
    monkeypatch.setattr(features, "SHARD_BYTES", 1)
    encoded: list[int] = []
    encode = cached.encode

    def counted(encoder: Any, pooled: Any, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(encoder, pooled, pixels)

    monkeypatch.setattr(cached, "encode", counted)
    run_stage("align_features")
    measured = 2 + 1 + 4  # looked at twice, one for its shape, four timed
    assert encoded[measured:] == [32, 4]  # of 32, 32, 32, 4
    one, other = opened(made), opened(folder)
    assert one is not None
    assert other is not None
    keys = images_for(prepare(folder, load_params(folder / "params.yaml"), "align_features")).keys
    assert torch.equal(one(keys), other(keys))
    assert not list((folder / ".lab" / "work").glob("*"))


def test_another_seed_encodes_what_no_other_stage_has(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`instruct` sees some of the images that `align` has seen; these are taken from there, bit for bit."""
    encode, encoded = cached.encode, []

    def counted(encoder: Any, pooled: Any, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(encoder, pooled, pixels)

    monkeypatch.setattr(cached, "encode", counted)
    found = run_stage("instruct_features", "understanding")
    assert found["cache/reused"] > 0
    assert sum(encoded[7:]) == found["cache/images"] - found["cache/reused"]
    assert f"images ({found['cache/reused']:.0f} from other stages)" in capsys.readouterr().out
    record = json.loads((made / "output/instruct_features/understanding/features.json").read_text())
    stored = Features(made / "output/instruct_features/understanding", record["key"])
    context = prepare(made, load_params(made / "params.yaml"), "instruct_features", "understanding")
    images = images_for(context)
    encoder = load_component(made / "output" / "encoder")
    pixels = images_of(list(images))
    expected = torch.cat([encode(encoder, None, chunk) for chunk in pixels.split(cached.BATCH)])
    assert torch.equal(stored(images.keys), expected)


def test_images_that_change_are_refused() -> None:
    """Augmentation shows as another image, or as other pixels, at the second look."""
    rng = np.random.default_rng(0)

    def images(key: Callable[[], str]) -> Images:
        made = Images()
        made.add(lambda row: [Picture(lambda: rng.random((3, 2, 2), np.float32), key)], 1)
        return made

    with pytest.raises(LabError, match="images change from one look to the next"):
        images(lambda: str(rng.random()))[0]
    with pytest.raises(LabError, match="pixels change from one look to the next"):
        check_constant(images(lambda: "same"), lambda pixels: pixels, 1)
    still = Images()
    still.add(lambda row: [Picture(lambda: np.zeros((3, 2, 2), np.float32), lambda: "same")], 1)
    with pytest.raises(LabError, match="the encoder gives other features every time"):
        check_constant(still, lambda pixels: pixels + torch.rand(1), 1)
