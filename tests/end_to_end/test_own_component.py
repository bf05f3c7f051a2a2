"""A part outside the checkout: what docs/components.md shows trains, and nothing here is touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    "data.train_scenes=300",
    "data.validation_scenes=30",
    "data.test_scenes=30",
    "judge.steps=5",
    *(
        f"stages.{stage}.{setting}"
        for stage in ("encoder", "text_decoder", "image_decoder", "align", "instruct")
        for setting in ("steps=2", "batch_size=4", "warmup=1")
    ),
    *(f"stages.evaluate.{part}=4" for part in ("questions", "captions", "prompts", "edits", "texts")),
]


@pytest.mark.slow
def test_the_documented_connector_trains_from_a_folder_of_its_own(tmp_path: Path) -> None:
    shown = re.search(
        r"```python\n(.*?class Average.*?)```", (ROOT / "docs" / "components.md").read_text(), re.DOTALL
    )
    assert shown
    part = tmp_path / "parts" / "connectors" / "average.py"
    part.parent.mkdir(parents=True)
    part.write_text(shown[1])
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "experiments" / "ablations" / "smoke" / "params.yaml", work)
    environment = {**os.environ, "LAB_COMPONENTS": str(tmp_path / "parts"), "OMP_NUM_THREADS": "1"}

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lab", *words]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)

    listed = lab("components", "average")
    assert listed.returncode == 0, listed.stderr
    assert "group" in listed.stdout
    wrong = lab("train", "connector=average", "connector.group=5", *TINY)
    assert wrong.returncode == 2
    assert "group must divide the encoder's 16 tokens, not 5" in wrong.stderr
    done = lab("train", "connector=average", "connector.group=4", *TINY)
    assert done.returncode == 0, done.stderr
    assert "understanding/vqa" in done.stdout
    again = lab("train", "connector=average", "connector.group=4", *TINY)
    assert again.stdout.count("reused") == 8, again.stdout

    part.write_text(part.read_text().replace("order is kept.", "order stays."))
    edited = lab("train", "connector=average", "connector.group=4", *TINY)
    assert edited.stdout.count("reused") == 5, edited.stdout  # all but align, instruct and evaluate
