"""Features on disk: found by what images hold, mapped and not read, refused where they are another's."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from lab.errors import LabError
from lab.samples import features
from lab.samples.features import DTYPES, RECORD, Features, FeatureWriter, bytes_of

SHAPE = (4, 6)
KEY = {"encoder weights": "abc", "dtype": "fp32"}


def written(folder: Path, rows: Tensor, dtype: str = "fp32", batch: int = 4) -> Features:
    """Rows whose keys are their numbers."""
    writer = FeatureWriter(folder / "work", (rows.shape[1], rows.shape[2]), dtype, batch)
    for chunk in rows[writer.done :].split(batch):
        writer.add(chunk)
    (folder / "out").mkdir(exist_ok=True)
    writer.publish(folder / "out", [str(row) for row in range(len(rows))], {"key": KEY})
    return Features(folder / "out", KEY)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_in_the_order_asked_for_from_any_shard(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD_BYTES", 8 * bytes_of(SHAPE, dtype))
    rows = torch.randn(30, *SHAPE)
    stored = written(tmp_path, rows, dtype)
    shards = sorted((tmp_path / "out").glob("shard-*"))
    assert len(shards) == 4  # of 8, 8, 8 and 6 rows
    assert max(file.stat().st_size for file in shards) <= features.SHARD_BYTES + 200  # and a head
    expected = rows.to(DTYPES[dtype])
    for asked in ([3], [29, 0, 8, 8, 15], list(range(30)), [17, 16]):
        assert torch.equal(stored([str(row) for row in asked]), expected[asked])
    assert stored(["5"]).dtype == DTYPES[dtype]
    assert len(stored) == 30


def test_opening_reads_nothing_and_a_batch_its_rows(tmp_path: Path) -> None:
    stored = written(tmp_path, torch.randn(4000, 64, 32), batch=500)  # 33 MB
    before = own_memory()
    found = stored([str(row) for row in range(0, 4000, 400)])
    assert own_memory() - before < 4 * 2**20
    assert found.shape == (10, 64, 32)


def own_memory() -> int:
    """Bytes of this process that are no part of a file."""
    maps = psutil.Process().memory_maps()
    return sum(one.anonymous for one in maps)


def test_whole_shards_of_an_earlier_attempt_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_BYTES", 4 * bytes_of(SHAPE, "fp32"))
    rows = torch.randn(10, *SHAPE)
    first = FeatureWriter(tmp_path / "work", SHAPE, "fp32", 4)
    assert first.add(rows[:4])
    (tmp_path / "work" / "shard-00001.partial").write_bytes(b"half")  # as a kill leaves it
    assert FeatureWriter(tmp_path / "work", SHAPE, "fp32", 4).done == 4
    stored = written(tmp_path, rows)
    assert torch.equal(stored([str(row) for row in range(10)]), rows)


def test_an_image_without_features_is_named(tmp_path: Path) -> None:
    stored = written(tmp_path, torch.randn(5, *SHAPE))
    with pytest.raises(LabError, match="1 of 2 images have no features there, the first is unseen"):
        stored(["3", "unseen"])


def test_what_features_follow_from_is_compared(tmp_path: Path) -> None:
    written(tmp_path, torch.randn(5, *SHAPE))
    with pytest.raises(LabError, match=r"features of something else; encoder weights \(abc there, def now\)"):
        Features(tmp_path / "out", {**KEY, "encoder weights": "def"})
    with pytest.raises(LabError, match=r"resolution \(None there, 224 now\)"):
        Features(tmp_path / "out", {**KEY, "resolution": "224"})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    stored = written(tmp_path, torch.randn(5, *SHAPE))
    (tmp_path / "out" / "shard-00000.safetensors").write_bytes(b"no features")
    with pytest.raises(LabError, match=r"shard-00000\.safetensors: no features can be read there"):
        stored(["0"])
    (tmp_path / "out" / RECORD).write_text("{")
    with pytest.raises(LabError, match="out: no features can be read there"):
        Features(tmp_path / "out", KEY)
    assert json.loads((tmp_path / "out" / RECORD).read_text() + "}") == {}
