"""A step at LLaVA's sizes on a GPU: tokens a second, share of the chip's matrix rate, memory.

    .venv/bin/python benchmarks/gpu.py [--small] [--write]

A CLIP-L tower that is frozen (304M parameters), an MLP, a Llama of 1.1B, all random and in bf16; samples
have lengths like those of LLaVA's instruction data. Rows: padding and packing, each without and with
compilation. Model FLOPs are counted by formula on positions that hold something: 6 for each parameter of the
language model and the connector, 2 for each of the tower, and attention's. `--small` runs the same code on a
processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import page
import torch
from torch import nn

MARKS = ("<!-- gpu: begin -->", "<!-- gpu: end -->")
LARGE: dict[str, Any] = {
    "tower": {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
    | {"num_hidden_layers": 24, "num_attention_heads": 16},
    "decoder": {"dim": 2048, "depth": 16, "num_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 8192, "tie_embeddings": False},
    "vocabulary": 32_000,
    "samples": 16,
    "longest": 2048,
    "matrix": 8192,
}
SMALL: dict[str, Any] = {
    "tower": {"image_size": 56, "patch_size": 14, "hidden_size": 64, "intermediate_size": 128}
    | {"num_hidden_layers": 2, "num_attention_heads": 2},
    "decoder": {"dim": 64, "depth": 2, "num_heads": 2, "tie_embeddings": False},
    "vocabulary": 500,
    "samples": 6,
    "longest": 128,
    "matrix": 512,
}
WARMUP, STEPS, TURNS = 3, 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="small sizes, on a processor")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        raise SystemExit("no GPU: --small runs the same on a processor")
    text = measure(SMALL if args.small else LARGE, torch.device("cpu" if args.small else "cuda"))
    print(text)
    if args.write:
        page.write_between(page.ROOT / "docs" / "benchmarks.md", MARKS, text)


def measure(sizes: dict[str, Any], device: torch.device) -> str:
    peak = matrix_rate(sizes["matrix"], device)
    module = built(sizes, device)
    batch = batch_of(sizes, module.model.tokens_read)
    work = operations(module.model, batch)
    kinds = [(layout, compiled) for layout in ("padded", "packed") for compiled in ("off", "on")]
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
    for turn in range(TURNS):
        for kind in kinds[:: 1 if turn % 2 == 0 else -1]:
            found[kind].append(steps(module, batch, *kind, device))
            print(f"{kind[0]}, compile {kind[1]}: {found[kind][-1][0]:.3f} s a step", flush=True)
    tokens = int(batch.mask.sum())
    first = found[kinds[0]][0][2]
    rows = [["", "a step, s", "useful tokens/s", "model TFLOP/s", "of the matrix rate", "peak GiB"]]
    for (layout, compiled), turns in found.items():
        seconds = min(second for second, _, _ in turns)
        if abs(turns[0][2] - first) > 2e-2 * abs(first):
            raise SystemExit(f"{layout}: the loss is {turns[0][2]}, not {first}")
        rate = work / seconds
        cells = [f"{seconds:.3f}", f"{tokens / seconds:,.0f}", f"{rate / 1e12:.2f}", f"{rate / peak:.1%}"]
        rows.append([f"{layout}, compile {compiled}", *cells, f"{turns[0][1]:.1f}"])
    name = torch.cuda.get_device_name() if device.type == "cuda" else page.machine()
    share = tokens / batch.ids.numel()
    products = f"products of matrices of {sizes['matrix']}: {peak / 1e12:.2f} TFLOP/s"
    head = f"{name}, torch {torch.__version__}; {products}"
    return f"{head}. {tokens} tokens a step; padding leaves {share:.0%} useful.\n\n{page.table(rows)}"


def matrix_rate(size: int, device: torch.device) -> float:
    """FLOP/s of products of square matrices in bf16, the best of several."""
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: one @ two, device) for _ in range(10))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time until the device is done."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def built(sizes: dict[str, Any], device: torch.device) -> Any:
    """The stage module of a LLaVA with random weights."""
    from lab.models.unified import UnifiedModel
    from lab.registry import build
    from lab.training.modules import UnifiedTraining

    torch.manual_seed(0)
    tower = {"name": "clip", "layer": -2, "config": {"model_type": "clip_vision_model", **sizes["tower"]}}
    encoder = build("encoder", tower, sizes["tower"]["image_size"])
    decoder = build("text_decoder", {"name": "llama", **sizes["decoder"]}, sizes["vocabulary"])
    connector = build("connector", {"name": "mlp"}, encoder.dim, decoder.dim, encoder.num_tokens)
    fusion = build("fusion", {"name": "sequence"}, decoder.dim, len(decoder.layers), connector.num_tokens)
    model = UnifiedModel(encoder, connector, decoder, fusion).to(device, torch.bfloat16)
    rates = {"connector": 1e-4, "text_decoder": 1e-4}
    module = UnifiedTraining(
        model, list(rates), 1.0, learning_rates=rates, steps=10**6, warmup=10, weight_decay=0.0
    )
    module.fused = device.type == "cuda"
    module.on_train_start()
    return module


def batch_of(sizes: dict[str, Any], visual: int) -> Any:
    """Samples of one image and random words, or of words alone, padded."""
    from lab.samples.batch import Batch, Places

    rng = np.random.default_rng(0)
    count, longest = sizes["samples"], sizes["longest"]
    text = np.where(rng.random(count) < 0.1, longest / 2.5, longest / 12) * rng.lognormal(0, 0.7, count)
    has_image = rng.random(count) < 0.9
    lengths = np.clip(text.astype(int), 8, None) + np.where(has_image, visual + 1, 1)
    lengths = np.minimum(lengths, longest)
    column = np.arange(lengths.max())
    mask = column < lengths[:, None]
    read = has_image[:, None] & (column >= 1) & (column <= visual)
    words = mask & (column > np.where(has_image, visual + 1, 1)[:, None])
    supervised = words & (rng.random(mask.shape) < 0.6)
    image = np.where(has_image[:, None] & (column >= 1), 0, -1)
    none = np.zeros_like(mask)
    side = sizes["tower"]["image_size"]
    tensors = [torch.from_numpy(array) for array in (mask, supervised, read, none, image.astype(np.int64))]
    ids = torch.from_numpy(np.where(words, rng.integers(4, sizes["vocabulary"], mask.shape), 0))
    return Batch(
        ids,
        *tensors,
        prompt=torch.zeros(int(has_image.sum()), 0, dtype=torch.long),
        pixels_read=torch.rand(int(has_image.sum()), 3, side, side).to(torch.bfloat16),
        pixels_drawn=torch.zeros(0, 3, 1, 1),
        task=torch.zeros(count, dtype=torch.long),
        tasks=("vqa",),
        sample_ids=tuple(map(str, range(count))),
        pad=0,
        places=Places.of(supervised, read, none, image, 0),
    )


def steps(
    module: Any, batch: Any, layout: str, compiled: str, device: torch.device
) -> tuple[float, float, float]:
    """Seconds of a step, the most memory in GiB, and the loss of the first step."""
    from lab.config import TrainerParams
    from lab.training.speed import accelerated, plan_of

    where = TrainerParams(layout=layout, compile=compiled)
    laid = plan_of(where, module, device.type, False)(batch).to(device)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    losses = []

    def step() -> None:
        optimizer.zero_grad()
        loss = module.training_step(laid, 0)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.detach())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with accelerated(module, where, device.type):
        for _ in range(WARMUP):
            step()
        seconds = seconds_of(lambda: [step() for _ in range(STEPS)], device) / STEPS
    module.load_state_dict(before)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return seconds, memory, float(losses[0])


def operations(model: Any, batch: Any) -> float:
    """Model FLOPs of a step, of positions that hold something."""
    lengths = batch.mask.sum(dim=1).double()
    decoder, encoder = model.text_decoder, model.encoder
    embedded = decoder.model.get_input_embeddings().weight.numel()
    inside = sum(parameter.numel() for parameter in decoder.parameters()) - embedded
    rows = decoder.model.get_output_embeddings().weight.numel()
    language = 6 * (inside - rows) * float(lengths.sum()) + 6 * rows * len(batch.places.supervised)
    attention = 6 * len(decoder.layers) * decoder.dim * float((lengths**2).sum())  # causal: half of the pairs
    images = len(batch.pixels_read)
    tower = (
        2 * sum(parameter.numel() for parameter in encoder.parameters()) * images * (encoder.num_tokens + 1)
    )
    bridge = (
        6 * sum(parameter.numel() for parameter in model.connector.parameters()) * images * encoder.num_tokens
    )
    return language + attention + tower + bridge


if __name__ == "__main__":
    main()
