"""The stages that cache features, and what a stage that trains takes of them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.config import FeaturesParams, read_tree
from lab.errors import LabError
from lab.graph.datasets import hashes_of
from lab.graph.hashing import hashed
from lab.graph.node import md5_of
from lab.models.caching import FEATURES, pools
from lab.registry import path
from lab.samples.mix import parse

if TYPE_CHECKING:
    from torch import Tensor

    from lab.graph.execution import Context
    from lab.samples.features import Features


def features_of(context: Context) -> Features | None:
    """The features of all images that a stage will see; None where there are none, so that it has to encode.

    Raises:
        LabError: they follow from another encoder, other data or another dtype.
    """
    from lab.samples.features import Features, read_record

    folder = context.inputs.get(f"{context.stage}_features")
    if folder is None or not read_record(folder)["cached"]:
        return None
    return Features(folder, _key(context, context.parts["encoder"]))


def cache_features(context: Context) -> dict[str, float]:
    """Encodes every image once that the stage after this one will see, if that pays or is asked for."""
    from lab.graph.features.images import check_constant, images_for
    from lab.graph.features.timing import measure
    from lab.models.cached import BATCH, encode, encode_all, facts_of
    from lab.samples.batch import images_of
    from lab.samples.features import FeatureWriter, bytes_of, write_record

    began = time.perf_counter()
    settings: FeaturesParams = context.params.fitted(context.stage)
    encoder, folder = _encoder(context)
    images = images_for(context)
    if settings.cache == "off" or not len(images):
        write_record(context.out, {"cached": False})
        return {**images.counts, "cache/cached": 0.0}
    device = _device(context)
    encode_on = partial(encode, encoder.to(device), _pooled(context, encoder))
    check_constant(images, lambda pixels: encode_on(pixels.to(device)), BATCH)
    pixels = images_of(images[:BATCH]).to(device)
    features = encode_on(pixels).cpu()
    times = measure(
        lambda: images_of(images[:BATCH]),
        lambda: encode_on(pixels).cpu(),
        features,
        settings.dtype,
        context.out,
    )
    shape = features.shape[1], features.shape[2]
    size = bytes_of(shape, settings.dtype)
    writer = FeatureWriter(context.node.work, shape, settings.dtype, BATCH)
    without, with_cache = times.totals(len(images), images.uses * _readers(context))
    asked = settings.cache == "on" or writer.done > 0  # what an earlier attempt has begun is finished
    cached = asked or (with_cache < without and size * len(images) < _room(context.out))
    print(
        f"{context.node.label}: {'caches' if cached else 'does not cache'} {len(images):,} images, "
        f"{size * len(images) / 2**20:,.0f} MB in {settings.dtype}: one takes {1e3 * times.encoding:.2f} ms "
        f"to make and encode, {1e3 * times.reading:.2f} ms to read; in all {without:.1f} s without a cache, "
        f"{with_cache:.1f} s with one{'' if settings.cache == 'auto' else f' (cache: {settings.cache})'}",
        flush=True,
    )
    if cached:
        if size * (len(images) - writer.done) > _room(context.out):
            raise LabError(
                f"{context.node.label}: features take {size * len(images) / 2**30:.1f} GB, but "
                f"{_room(context.out) / 2**30:.1f} GB are free there; choose stages.features.dtype bf16, or "
                "cache: off"
            )
        encode_all(encode_on, images, writer, device, _progress(context.node.label, len(images)))
        facts = {"cached": True, "key": _key(context, folder), "encoder": facts_of(encoder, context.out)}
        writer.publish(context.out, images.keys, facts)
    else:
        write_record(context.out, {"cached": False})
    return {
        **images.counts,
        "cache/cached": float(cached),
        "cache/megabytes": size * len(images) / 2**20 if cached else 0.0,
        "cache/encoding_ms": 1e3 * times.encoding,
        "cache/reading_ms": 1e3 * times.reading,
        "cache/seconds_without": without,
        "cache/seconds_with": with_cache,
        "cost/train_seconds": time.perf_counter() - began,
    }


def _progress(label: str, images: int) -> Callable[[int], None]:
    return lambda done: print(f"{label}: {done:,} of {images:,} images", flush=True)


def _room(folder: Path) -> int:
    """Bytes that are free."""
    return shutil.disk_usage(folder).free


def _encoder(context: Context) -> tuple[Any, Path]:
    """The encoder in eval mode, and its folder: of the stage that trained it, or here where none did."""
    from lab.models.arm import new_part
    from lab.models.store import load_component, save_component

    params = context.params
    if "encoder" in context.parts:
        return load_component(context.parts["encoder"]), context.parts["encoder"]
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
    encoder = new_part(params, "encoder", params.encoder, (context.world.image_size,), {}, built)
    folder = context.out / "encoder"
    save_component(folder, "encoder", *built["encoder"], encoder)
    return encoder.eval(), folder


def _pooled(context: Context, encoder: Any) -> Callable[[Tensor], Tensor] | None:
    """What the connector begins with, where it has no parameters."""
    from lab.registry import build

    if not _pools(context):
        return None
    spec = context.params.spec("connector", context.params.connectors[0])
    connector = build("connector", spec, encoder.dim, encoder.dim, encoder.num_tokens)
    pooled: Callable[[Tensor], Tensor] = connector.pooled
    return pooled


def _pools(context: Context) -> bool:
    """Whether features are pooled; a node of an ablation knows of connectors only where that may be."""
    return context.params.connectors is not None and pools(context.params)


def _device(context: Context) -> str:
    import torch

    accelerated = context.params.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return "cuda" if accelerated else "cpu"


def _key(context: Context, encoder: Path) -> dict[str, str]:
    """What features follow from."""
    params = context.params
    config: Mapping[str, Any] = json.loads((encoder / "config.json").read_text())
    connector = params.spec("connector", params.connectors[0]) if _pools(context) else None
    return {
        "encoder weights": md5_of(encoder / "model.safetensors"),
        "encoder settings": json.dumps([config["spec"], config["args"]], sort_keys=True),
        "preprocessing": md5_of(path("encoder", config["spec"]["name"])),
        "data": json.dumps(_data(context), sort_keys=True),
        "dtype": params.fitted(f"{context.stage.removesuffix('_features')}_features").dtype,
        "pooled by": json.dumps(connector, sort_keys=True),
    }


def _data(context: Context) -> dict[str, str]:
    """Hashes of all that images come from."""
    mix = parse(context.mix_of(FEATURES.get(context.stage, context.stage)))
    named = {source.name for source in mix.sources()}
    sets = {name: entry for name, entry in context.data_sets.items() if name in named}
    entries = {f"datasets.{name}": str(asdict(entry)) for name, entry in sets.items()}
    return {"scenes": hashed(context.inputs["data"]).md5, **entries, **hashes_of(sets, context.folder)}


def _readers(context: Context) -> int:
    """How many stages read what this one makes, as far as they are declared by now."""
    nodes = context.folder.glob(f"nodes/*/{FEATURES[context.stage]}.yaml")
    found = [read_tree(file)["inputs"].get(context.stage) for file in nodes]
    if found:
        return found.count(context.node.instance)
    return 1 if context.connector else len(context.params.connectors)
