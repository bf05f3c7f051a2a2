"""Data sets in use: splits that share no image, rows as a pure function, memory that does not grow."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.config import SPLITS, DataSetParams
from lab.errors import LabError
from lab.samples.batch import Collate
from lab.samples.datasets import DataSet, DataSource
from lab.samples.images import LIMIT
from lab.samples.indexing import build
from lab.samples.mixture import Mixture
from lab.samples.segments import ASSISTANT, BOS, EOS, SPECIAL_TOKENS, USER
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World
from tests.samples.readers.conftest import encoded, put, talk, webdataset

HASHED = {"validation": 0.2, "test": 0.2}


def opened(root: Path, splits: Any = "own", name: str = "llava") -> DataSet:
    return DataSet(
        "mine", DataSetParams("", name, splits=splits), build(root, name, LIMIT, root.with_name("index"))
    )


def talks(root: Path, count: int, images: int, pairs: bool = False) -> None:
    """Conversations about shared images: row n has image n modulo `images`, and the next one if `pairs`."""
    for number in range(images):
        put(root, f"{number}.png", encoded(number))
    records = []
    for number in range(count):
        named = [f"{number % images}.png", *([f"{(number * 7 + 3) % images}.png"] if pairs else [])]
        records.append(talk(number, "<image> " * len(named) + "What?", f"It is {number}.", image=named))
    put(root, "talks.jsonl", records)


def images_of(data: DataSet, split: str) -> set[str]:
    rows = (data.index.row(int(number)) for number in data.rows(split))
    return {shot.digest for row in rows for shot in row.shots}


def test_splits_by_image_share_no_image(tmp_path: Path) -> None:
    talks(tmp_path / "set", 200, 50)
    data = opened(tmp_path / "set", HASHED)
    rows = [data.rows(split) for split in SPLITS]
    assert sorted(np.concatenate(rows)) == list(range(200))
    assert all(len(one) > 10 for one in rows)
    seen = [images_of(data, split) for split in SPLITS]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_rows_that_share_images_by_way_of_others_stay_together(tmp_path: Path) -> None:
    """Two pairs (a, b) and (b, c): a hash of the first image alone would part them."""
    root = tmp_path / "set"
    for number in range(60):
        put(root, f"{number}.png", encoded(number))
    chains = [[start, start + 1] for first in range(0, 60, 3) for start in (first, first + 1)]
    records = [
        talk(number, "<image> <image> What?", "This.", image=[f"{one}.png" for one in pair])
        for number, pair in enumerate(chains)
    ]
    put(root, "talks.jsonl", records)
    data = opened(root, {"validation": 0.3, "test": 0.3})
    seen = [images_of(data, split) for split in SPLITS]
    assert all(seen)
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_a_split_does_not_depend_on_other_rows(tmp_path: Path) -> None:
    """Data that come later move no image from one split to another."""
    talks(tmp_path / "a" / "set", 40, 40)
    talks(tmp_path / "b" / "set", 80, 80)
    few, many = (opened(tmp_path / place / "set", HASHED) for place in ("a", "b"))
    for split in SPLITS:
        assert images_of(few, split) <= images_of(many, split)


def test_splits_by_file_and_by_the_sets_own_names(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root, "0.png", 0)
    for name, count in (("talks_train.json", 4), ("talks_val.json", 3), ("extra.json", 2)):
        put(root, name, [talk(number, "<image> What?", "This.", image="0.png") for number in range(count)])
    own = opened(root)
    assert [len(own.rows(split)) for split in SPLITS] == [6, 3, 0]  # what says nothing is for training
    filed = DataSet(
        "mine", DataSetParams("", "llava", splits={"test": "extra*", "train": "*train*"}), own.index
    )
    assert [len(filed.rows(split)) for split in SPLITS] == [4, 0, 2]
    with pytest.raises(LabError, match="data set 'mine': no row in split 'validation' of 9"):
        DataSource(filed, "validation", World())


def test_a_source_survives_the_way_to_another_process(tmp_path: Path) -> None:
    talks(tmp_path / "set", 20, 5)
    source = DataSource(opened(tmp_path / "set"), "train", World())
    source.sample(0, 0)
    again = pickle.loads(pickle.dumps(source))
    one, two = source.sample(3, 1), again.sample(3, 1)
    assert one.id == two.id
    first, second = one.segments[1].picture, two.segments[1].picture
    assert first is not None
    assert second is not None
    assert np.array_equal(first.pixels, second.pixels)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are listed in /proc")
def test_shards_are_not_held_open(tmp_path: Path) -> None:
    """There may be more of them than a process may have open files."""
    webdataset(tmp_path / "set")
    for number in range(20):
        (tmp_path / "set" / f"more-{number}.tar").write_bytes((tmp_path / "set" / "00000.tar").read_bytes())
    data = opened(tmp_path / "set", name="webdataset")
    assert len(data) == 42
    before = len(list(Path("/proc/self/fd").iterdir()))
    for row in data.index:
        (shot,) = row.shots
        asked = row.turns[0][1][-1]
        assert data.index.bytes_of(shot.blob) == encoded(int(asked == "what?"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_mix_draws_from_tasks_and_data_sets(tmp_path: Path, tasks: SceneTasks) -> None:
    talks(tmp_path / "set", 20, 5)
    sources = {**tasks.sources(), "mine": DataSource(opened(tmp_path / "set"), "train", World())}
    mix = Mixture(sources, {"caption": 1, "mine": 3}, 256, seed=0)
    drawn = [mix[position] for position in range(80)]
    assert sum(sample.task == "mine" for sample in drawn) == 60
    firsts = [sample.id for sample in drawn if sample.task == "mine"][:20]
    assert len({name.rpartition("/")[0] for name in firsts}) == 20  # every row once, then again
    assert [mix[position].id for position in range(80)] == [sample.id for sample in drawn]


def test_words_of_a_data_set_make_a_tokenizer_that_knows_all_its_texts(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root, "0.png", 0)
    turns = ('<image> What is "this", then?', "It's a CAT (a small one): 3.5 kg!")
    put(root, "talks.jsonl", [talk(0, *turns, image="0.png")])
    data = opened(root)
    tokenizer = Tokenizer.of_words(["red"], data.words())
    for segment in DataSource(data, "train", World()).sample(0, 0).segments:
        if segment.text is not None:
            assert tokenizer.encode(segment.text)
    assert tokenizer.decode(tokenizer.encode("A CAT, 3.5 kg!")) == "a cat , 3.5 kg !"
    with pytest.raises(LabError, match=r"the tokenizer does not know 'dog'"):
        tokenizer.encode("It's a Dog")


def test_special_tokens_in_the_texts_of_a_data_set_are_words(tmp_path: Path) -> None:
    root, text = tmp_path / "set", "Is <eos>, <EOS>? <image_start>now<user>"
    put(root, "talks.jsonl", [talk(0, text, text)])
    data = opened(root)
    tokenizer = Tokenizer.of_words(["red"], data.words())
    laid = Collate(tokenizer, 4, 4, ("mine",)).lay(DataSource(data, "train", World()).sample(0, 0))
    special = [tokenizer[one] for one in SPECIAL_TOKENS]
    expected = [tokenizer[one] for one in (BOS, USER, ASSISTANT, EOS)]
    assert [one for one in laid.ids if one in special] == expected


def test_without_data_sets_a_tokenizer_is_as_it_was(tokenizer: Tokenizer, tasks: SceneTasks) -> None:
    again = Tokenizer.of_words(tasks.language.vocabulary(), [])
    assert again.tokenizer.backend_tokenizer.to_str() == tokenizer.tokenizer.backend_tokenizer.to_str()


_MEASURE = """
import re, sys
from pathlib import Path
from lab.config import DataSetParams
from lab.samples.batch import Collate
from lab.samples.datasets import DataSet, DataSource
from lab.samples.indexing import build
from lab.scenes.world import World
for place in sys.argv[2:]:
    root, name = Path(place), sys.argv[1]
    index = build(root, name, 10**8, root.with_name("index"))
    source = DataSource(DataSet("mine", DataSetParams("", name), index), "train", World())
    for row in range(0, len(source), max(1, len(source) // 50)):
        source.sample(row, 0)
    print(len(source), re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("name", ["llava", "coco"])
def test_memory_stays_flat_as_data_grow_tenfold(tmp_path: Path, name: str) -> None:
    """Text alone, so that sizes tell: a JSON array of 5 MB, then one of 50 MB, in one process."""
    counts = (500, 5_000)
    roots = [tmp_path / str(rows) / "set" for rows in counts]
    for rows, root in zip(counts, roots, strict=True):
        put(root, "0.png", 0)
        filler = "word " * 2_000
        records: Any = [talk(n, "What?", f"{n} {filler}", image="0.png") for n in range(rows)]
        if name == "coco":
            records = {
                "images": [{"id": n, "file_name": "0.png"} for n in range(rows)],
                "annotations": [{"image_id": n, "caption": f"{n} {filler}"} for n in range(rows)],
            }
        (root / "captions.json").write_text(json.dumps(records))
    words = [sys.executable, "-c", _MEASURE, name, *map(str, roots)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert tuple(rows for rows, _ in found) == counts
    assert found[1][1] - found[0][1] < 8_000, found  # KB; the file is 45 MB larger
