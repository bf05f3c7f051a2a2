"""A pipeline so small that its stages run in a test's own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

SMOKE = Path(__file__).parents[2] / "experiments" / "ablations" / "smoke" / "params.yaml"


@pytest.fixture(scope="session")
def tiny_params() -> dict[str, Any]:
    """The smoke pipeline with fewer steps, another encoder, and two connectors."""
    params: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    params |= {"encoder": "patches", "connectors": ["linear", "mlp"]}
    params["data"] = {"train_scenes": 60, "validation_scenes": 40, "test_scenes": 40}
    params["judge"]["steps"] = 5
    for name, stage in params["stages"].items():
        if name != "evaluate":
            stage |= {"steps": 4, "log_every": 2, "checkpoint_every": 2, "warmup": 1, "batch_size": 8}
    params["stages"]["evaluate"] = dict.fromkeys(params["stages"]["evaluate"], 6)
    return params


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory, tiny_params: dict[str, Any]) -> Path:
    """The arm linear-understanding, from data to evaluation; to be read, not changed."""
    from lab.graph.execution import run_stage

    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("data", "judge", "encoder", "text_decoder", "image_decoder"):
            run_stage(stage)
        run_stage("align", "linear")
        for stage in ("instruct", "evaluate"):
            run_stage(stage, "linear", "understanding")
    return folder
