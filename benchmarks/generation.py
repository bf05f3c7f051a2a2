"""Answers of the lab against `generate` of transformers, and images drawn, at equal weights and sizes.

    .venv/bin/python benchmarks/generation.py [--repeats 5] [--write]

A Llama with random weights answers prompts of unlike length, greedily and to the same number of tokens; both
pad on the left and keep keys and values. Images are drawn a token at a time by a regression head, which
`generate` has no equal of: the same number of words from `generate` stands beside it.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import page
import torch
from turns import ratio, take_turns

MARKS = ("<!-- generation: begin -->", "<!-- generation: end -->")
SIZES = {"tiny": (128, 4, 4), "small": (512, 8, 8)}  # width, blocks, heads
ROWS, TOKENS, SIDE = 16, 32, 32
WORDS = [f"w{number}" for number in range(2000)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [["", "transformers", "the lab", "speed over transformers"]]
    for name, (dim, depth, heads) in SIZES.items():
        both = Both(dim, depth, heads)
        both.assert_equal()
        times = take_turns({"theirs": both.theirs, "ours": both.ours, "images": both.images}, args.repeats)
        rates = {kind: ROWS / float(np.median(seconds)) for kind, seconds in times.items()}
        shown, over = f"{name}, {both.size:.1f}M parameters", ratio(times["theirs"], times["ours"])
        rows.append([f"answers/s, {shown}", f"{rates['theirs']:.1f}", f"{rates['ours']:.1f}", over])
        rows.append([f"images/s, {shown}", "", f"{rates['images']:.1f}", ""])
    said = (
        f"{ROWS} prompts of 4 to 32 words at once, answers of {TOKENS} tokens, all equal; images of 16 tokens"
    )
    text = f"{page.machine()}\n\n{said}.\n\n{page.table(rows)}"
    print(text)
    if args.write:
        page.write_between(page.ROOT / "docs" / "benchmarks.md", MARKS, text)


class Both:
    """One language model and two ways to let it speak."""

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        from lab.models.arm import Arm
        from lab.models.unified import UnifiedModel
        from lab.registry import build
        from lab.samples.segments import BOS, IMAGE_START, Sample, question, special
        from lab.samples.tokenizer import Tokenizer

        torch.manual_seed(0)
        tokenizer = Tokenizer.of_words(WORDS)
        encoder = build("encoder", {"name": "patches", "patch_size": 8, "dim": 24}, SIDE)
        spec = {"name": "llama", "dim": dim, "depth": depth, "num_heads": heads}
        decoder = build("text_decoder", spec, len(tokenizer))
        connector = build("connector", {"name": "linear"}, encoder.dim, dim, encoder.num_tokens)
        fusion = build("fusion", {"name": "sequence"}, dim, depth, connector.num_tokens)
        head = build("visual_head", {"name": "regression"}, dim, encoder.dim, encoder.num_tokens)
        self.model = UnifiedModel(encoder, connector, decoder, fusion, head).eval()
        self.size = sum(parameter.numel() for parameter in decoder.parameters()) / 1e6
        rng = np.random.default_rng(0)
        asked = [" ".join(rng.choice(WORDS, int(rng.integers(4, 33)))) for _ in range(ROWS)]
        parts = [(special(BOS), question(text)) for text in asked]
        collate = Arm(self.model, tokenizer, {}).collate(("vqa",), left=True)
        self.prompts = collate([Sample(str(row), "vqa", part) for row, part in enumerate(parts)])
        start = special(IMAGE_START)
        self.drawing = collate([Sample(str(row), "vqa", (*part, start)) for row, part in enumerate(parts)])

    @torch.no_grad()
    def theirs(self) -> None:
        self.said_by_them = self.model.text_decoder.model.generate(  # type: ignore[attr-defined]
            input_ids=self.prompts.ids,
            attention_mask=self.prompts.mask.long(),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=self.prompts.pad,
        )[:, self.prompts.ids.shape[1] :]

    def ours(self) -> None:
        from lab.models.generation import generate_text

        self.said_by_us = generate_text(self.model, self.prompts, end=-1, max_new_tokens=TOKENS)

    def images(self) -> None:
        from lab.models.generation import generate_image_tokens

        generate_image_tokens(self.model, self.drawing, range(ROWS))

    def assert_equal(self) -> None:
        """Raises SystemExit where they do not say the same."""
        self.theirs()
        self.ours()
        if not torch.equal(self.said_by_them, torch.tensor(self.said_by_us)):
            raise SystemExit("the lab and transformers say different words")


if __name__ == "__main__":
    main()
