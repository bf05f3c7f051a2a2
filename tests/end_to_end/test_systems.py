"""A published system by the real commands: trained, evaluated, asked, drawn with, listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("encoder", "text_decoder", "image_decoder", "pretrain", "instruct")
TINY = [
    "data.train_scenes=60",
    "data.validation_scenes=30",
    "data.test_scenes=30",
    "judge.steps=5",
    "mix.by_example=30",
    *(f"stages.{stage}.{one}" for stage in STAGES for one in ("steps=2", "batch_size=4", "warmup=1")),
    *(f"stages.evaluate.{part}=4" for part in ("questions", "captions", "prompts", "edits", "texts")),
]


@pytest.mark.slow
def test_a_published_system_from_its_declaration(tmp_path: Path) -> None:
    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    declaration = str(ROOT / "experiments" / "systems" / "vl_gpt.yaml")
    wrong = lab("train", declaration, "stages.instruct.step=2")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean 'steps'?" in wrong.stderr
    done = lab("train", declaration, *TINY)
    assert done.returncode == 0, done.stderr
    shown = ("understanding/vqa", "generation/scene", "untrained/understanding/vqa")
    for name in (*shown, "understanding/by_example", "untrained/understanding/by_example/shots_4"):
        assert name in done.stdout
    again = lab("train", declaration, *TINY)
    assert again.stdout.count("reused") == 8, again.stdout  # every stage of the recipe

    (arm,) = (tmp_path / ".lab" / "arms").iterdir()
    assert arm.name.startswith("vl_gpt-")
    drawn = lab("draw", arm.name, "draw a red 3 at the top-left", "-o", "out.png")
    assert drawn.returncode == 0, drawn.stderr
    asked = lab("ask", arm.name, "out.png", "where is the 3 ?")
    assert asked.returncode == 0, asked.stderr
    told = lab("eval", arm.name, "--protocol", "by_example", "--shots", "0", "2", "--samples", "3")
    assert told.returncode == 0, told.stderr
    assert "right" in told.stdout
    table = lab("systems", "--results").stdout
    assert "| vl_gpt |" in table
    assert "| llava | | " in table  # it was not trained here
