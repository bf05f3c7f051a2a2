"""Arms and components on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.config import load_params
from lab.errors import LabError
from lab.models.arm import TOKENIZER, Arm, load_arm
from lab.models.arm import new_arm as start_arm
from lab.models.store import load_component, save_component
from lab.registry import build
from lab.scenes.tasks import SceneTasks


def trained(folder: Path) -> dict[str, Path]:
    """What earlier stages left."""
    return {role: folder / role for role in ("encoder", "text_decoder")}


SMOKE = Path(__file__).parents[2] / "experiments" / "ablations" / "smoke" / "params.yaml"


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_arm_is_the_arm(
    new_arm: Callable[..., Arm], tasks: SceneTasks, tmp_path: Path, tied: bool
) -> None:
    decoder = {"name": "llama", "dim": 32, "depth": 1, "num_heads": 2, "tie_embeddings": tied}
    arm = new_arm(text_decoder=decoder)
    arm.model.eval()
    arm.save(tmp_path)
    torch.manual_seed(99)  # what is built on load must not matter
    again = load_arm(tmp_path)
    assert not any(part.training for part in again.model.modules())
    samples = [tasks.sample(task, 3, 0) for task in tasks.tasks]
    with torch.no_grad():
        one, two = (made.model(made.collate(tuple(tasks.tasks))(samples)) for made in (arm, again))
    for name in ("text_sum", "image_sum"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert again.built == arm.built
    again.save(tmp_path / "again")
    for file in tmp_path.glob("*/*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.parent.name / file.name).read_bytes()


def test_adapters_are_zero_at_the_start(new_arm: Callable[..., Arm], tmp_path: Path) -> None:
    """An arm with LoRA begins as the language model that was pretrained without."""
    base = new_arm(seed=3)
    for role in ("encoder", "text_decoder"):
        spec, args = base.built[role]
        save_component(tmp_path / role, role, spec, args, getattr(base.model, role))
    base.tokenizer.save(tmp_path / "text_decoder" / TOKENIZER)
    settings = ["dim=32", "depth=2", "num_heads=2", "tie_embeddings=true", "mlp_ratio=2.7", "lora_rank=4"]
    params = load_params(
        SMOKE, ["encoder=patches", "encoder.dim=24", *(f"text_decoder.{one}" for one in settings)]
    )
    arm = start_arm(params, "linear", trained(tmp_path), [])
    decoder = arm.model.text_decoder.eval()
    adapters = decoder.adapter_parameters()
    assert adapters
    embeds = torch.randn(2, 6, 32)
    with torch.no_grad():
        assert torch.equal(decoder(embeds), base.model.text_decoder.eval()(embeds))
        for name, parameter in adapters:
            if "lora_B" in name:
                parameter.add_(0.1)
        assert not torch.allclose(decoder(embeds), base.model.text_decoder(embeds))
        arm.save(tmp_path / "arm")
        assert torch.equal(load_arm(tmp_path / "arm").model.text_decoder(embeds), decoder(embeds))


def test_a_seed_makes_the_fresh_parts(new_arm: Callable[..., Arm], tmp_path: Path) -> None:
    base = new_arm()
    for role in ("encoder", "text_decoder"):
        save_component(tmp_path / role, role, *base.built[role], getattr(base.model, role))
    base.tokenizer.save(tmp_path / "text_decoder" / TOKENIZER)
    made = [
        start_arm(load_params(SMOKE, [f"seed={seed}"]), "q_former", trained(tmp_path), [])
        for seed in (0, 0, 1)
    ]
    one, two, other = (torch.cat([p.flatten() for p in arm.model.connector.parameters()]) for arm in made)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no component can be read there"):
        load_component(tmp_path / "nothing")
    part = build("connector", "mlp", 8, 8, 4)
    save_component(tmp_path, "connector", {"name": "mlp"}, (8, 8, 4), part)
    assert json.loads((tmp_path / "config.json").read_text())["args"] == [8, 8, 4]
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    save_file(
        {**{k: v for k, v in weights.items() if k != name}, "stray": torch.zeros(1)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(LabError, match=rf"connector mlp: missing \['{name}'\], unexpected \['stray'\]"):
        load_component(tmp_path)
    save_component(tmp_path, "connector", {"name": "mlp"}, (8, 9, 4), part)
    with pytest.raises(LabError, match=r"^.*connector mlp: size mismatch for layers.*$"):
        load_component(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not weights")
    with pytest.raises(LabError, match="no component can be read there"):
        load_component(tmp_path)
