"""The stages that cache features, and what a stage that trains takes of them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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

    from lab.graph.context import Context
    from lab.graph.features.images import Images
    from lab.graph.features.timing import Times
    from lab.samples.features import Features, FeatureWriter


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
    from lab.samples.features import FeatureWriter, write_record

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
    writer = FeatureWriter(context.node.work, (features.shape[1], features.shape[2]), settings.dtype, BATCH)
    key = _key(context, folder)
    known = _known(context, key)
    times = measure(
        lambda: images_of(images[:BATCH]),
        lambda: encode_on(pixels).cpu(),
        features,
        settings.dtype,
        context.out,
    )
    cached, metrics = _decide(context, images, writer, known, times)
    if cached:
        said = _progress(context.node.label, len(images))
        encode_all(encode_on, images, writer, device, known, said)
        facts = {"cached": True, "key": key, "encoder": facts_of(encoder, context.out)}
        writer.publish(context.out, images.keys, facts)
    else:
        write_record(context.out, {"cached": False})
    return {**images.counts, **metrics, "cost/train_seconds": time.perf_counter() - began}


def _decide(
    context: Context, images: Images, writer: FeatureWriter, known: Sequence[Features], times: Times
) -> tuple[bool, dict[str, float]]:
    """Whether to cache, said to the person, and what that follows from, as metrics.

    Raises:
        LabError: a cache is asked for, and does not fit the disk.
    """
    import numpy as np

    from lab.samples.features import bytes_of

    settings, label = context.params.fitted(context.stage), context.node.label
    reused = int(np.any([one.has(images.keys) for one in known], axis=0).sum())
    without, with_cache = times.totals(len(images) - reused, images.uses * _readers(context))
    row = bytes_of(writer.shape, writer.dtype)
    size, room = row * len(images), shutil.disk_usage(context.out).free + row * writer.done
    asked = settings.cache == "on" or writer.done > 0  # what an earlier attempt has begun is finished
    cached = asked or (with_cache < without and size < room)
    print(
        f"{label}: {'caches' if cached else 'does not cache'} {len(images):,} images"
        f"{f' ({reused:,} from other stages)' if reused else ''}, {size / 2**20:,.1f} MB in {writer.dtype}: "
        f"one takes {1e3 * times.encoding:.2f} ms to make and encode, {1e3 * times.reading:.2f} ms to read; "
        f"in all {without:.1f} s without a cache, {with_cache:.1f} s with one"
        f"{'' if settings.cache == 'auto' else f' (cache: {settings.cache})'}",
        flush=True,
    )
    if cached and size > room:
        raise LabError(
            f"{label}: features take {size / 2**30:.1f} GB, but {room / 2**30:.1f} GB are free there; choose "
            "stages.features.dtype bf16, or cache: off"
        )
    return cached, {
        "cache/cached": float(cached),
        "cache/reused": float(reused),
        "cache/megabytes": size / 2**20 if cached else 0.0,
        "cache/encoding_ms": 1e3 * times.encoding,
        "cache/reading_ms": 1e3 * times.reading,
        "cache/seconds_without": without,
        "cache/seconds_with": with_cache,
    }


def _known(context: Context, key: Mapping[str, str]) -> list[Features]:
    """Features of this key that other stages of the pipeline have cached, of other seeds and mixes."""
    from lab.samples.features import RECORD, Features, read_record

    output = context.folder / "output"
    found = []
    for record in [*output.glob(f"*_features/{RECORD}"), *output.glob(f"*_features/[!.]*/{RECORD}")]:
        with suppress(LabError):  # of something else, or gone by now
            if record.parent != context.node.output and read_record(record.parent)["cached"]:
                found.append(Features(record.parent, key))
    return found


def _progress(label: str, images: int) -> Callable[[int], None]:
    return lambda done: print(f"{label}: {done:,} of {images:,} images", flush=True)


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
