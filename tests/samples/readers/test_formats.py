"""Every public format: recognised, counted, and laid out as segments with images where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lab.config import DataSetParams
from lab.errors import LabError
from lab.samples.chat import OwnChat, Run
from lab.samples.datasets import DataSet, DataSource
from lab.samples.images import LIMIT
from lab.samples.indexing import build
from lab.samples.readers.formats import FORMATS, recognise
from lab.samples.segments import SPECIAL_TOKENS, Sample
from lab.scenes.world import World

Make = Callable[[Path], None]

# format -> the samples of its rows in words: [] an image, [*] one to draw, * text to be said
EXPECTED = {
    "llava": [
        "[] <user> What is this? <assistant> | A cat.* | <user> Is it big? <assistant> | No.*",
        "<user> Is | [] | like | [] | ? <assistant> | Not at all.*",
        "<user> Say a number. <assistant> | Two.*",
    ],
    "coco": [
        "[] <user> describe the image <assistant> | A red cat.*",
        "[] <user> describe the image <assistant> | A dog.*",
    ],
    "vqav2": ["[] <user> What color is it? <assistant> | red*"],
    "gqa": [
        "[] <user> Is the sky dark? <assistant> | yes*",
        "[] <user> Is the sky dark? <assistant> | no*",
    ],
    "textvqa": ["[] <user> what is the brand? <assistant> | dakota*"],
    "pope": [
        "[] <user> Is there a dog in the image? <assistant> | yes*",
        "[] <user> Is there a fork in the image? <assistant> | no*",
    ],
    "edits": ["[] <user> make it blue <assistant> | [*] | <eos>*"] * 2,
    "interleaved": ["First.* | [] Then a cat.* | [] The end.*", "[] Only this.*", "Look.* | [] | <eos>*"],
    "webdataset": [
        "[] <user> describe the image <assistant> | a cat*",
        "[] <user> what? <assistant> | dog*",
    ],
    "hf": [
        "[] <user> describe the image <assistant> | a cat*",
        "[] <user> what? <assistant> | cat*",
        "[] <user> who? <assistant> | Ann*",
    ],
    "boxes": ["[] <user> where is the cat ? <assistant> | <loc_5> <loc_10>*"],
    "folder": [
        "[] <user> describe the image <assistant> | a cat*",
        "[] <user> describe the image <assistant> | a dog*",
    ],
}


def opened(root: Path, name: str, **more: object) -> DataSet:
    params = DataSetParams(str(root), name, **more)  # type: ignore[arg-type]
    return DataSet("mine", params, build(root, name, LIMIT, root.with_name(f"{root.name}-index-{name}")))


def source(root: Path, name: str, split: str = "", **more: object) -> DataSource:
    data = opened(root, name, **more)
    splits = [split] if split else ["train", "validation", "test"]
    found = next(one for one in splits if len(data.rows(one)))
    return DataSource(data, found, World(locations=4))


def shown(sample: Sample) -> str:
    words = []
    for piece in OwnChat(str.split, SPECIAL_TOKENS).lay_out(sample.segments[1:]):  # type: ignore[arg-type]
        if isinstance(piece, Run):
            text = " ".join(map(str, piece.ids))
            words.append(text.removesuffix(" <eos>") + "*" * all(piece.supervised))
        else:
            words.append(f"[{'*' * piece.supervised}]")
    text = " | ".join(words)
    return (
        text.replace("[] | <user>", "[] <user>")
        .replace("[] | Then", "[] Then")
        .replace("[] | The end", "[] The end")
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_and_its_rows_are_laid_out(
    tmp_path: Path, layouts: dict[str, Make], name: str
) -> None:
    root = tmp_path / "set"
    layouts[name](root)
    assert recognise(root) == name
    data = opened(root, name)
    assert data.index.counts["problems"] == {}
    rows = [
        DataSource(data, split, World(locations=4)).sample(place, 0)
        for split in ("train", "validation", "test")
        for place in range(len(data.rows(split)))
    ]
    found = [shown(sample).replace("[] | Only", "[] Only") for sample in rows]
    if name == "coco":  # of several captions the seed chooses one
        found[0] = found[0].replace("A cat that is red.", "A red cat.")
    assert found == EXPECTED[name]
    for sample in rows:
        for segment in sample.segments:
            if segment.picture is not None:
                assert segment.picture.pixels.shape == (3, 32, 32)
                assert 0 <= segment.picture.pixels.min() <= segment.picture.pixels.max() <= 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_a_function_of_row_and_seed(tmp_path: Path, layouts: dict[str, Make], name: str) -> None:
    """Two indices of the same bytes, built apart, give the same samples."""
    for place in ("one", "two"):
        layouts[name](tmp_path / place / "set")
    one, two = (source(tmp_path / place / "set", name) for place in ("one", "two"))
    for seed in (0, 1):
        first, second = one.sample(0, seed), two.sample(0, seed)
        assert first.id == second.id
        assert shown(first) == shown(second)
        keys = [[s.picture.key for s in sample.segments if s.picture] for sample in (first, second)]
        assert keys[0] == keys[1]


def test_ten_people_and_the_ids_of_results_are_kept(tmp_path: Path, layouts: dict[str, Make]) -> None:
    layouts["vqav2"](tmp_path / "set")
    (row,) = opened(tmp_path / "set", "vqav2").index
    assert row.answers == ("red", "blue", "blue", *["red"] * 7)
    assert row.tags == {"question_id": 9001, "image_id": 9}
    assert row.split == "validation"


def test_captions_can_be_drawn_from(tmp_path: Path, layouts: dict[str, Make]) -> None:
    layouts["folder"](tmp_path / "set")
    found = source(tmp_path / "set", "folder", task="text_to_image")
    assert shown(found.sample(0, 0)) == "<user> draw : a cat <assistant> | [*] | <eos>*"


def test_a_seed_chooses_among_captions(tmp_path: Path, layouts: dict[str, Make]) -> None:
    layouts["coco"](tmp_path / "set")
    found = source(tmp_path / "set", "coco")
    assert len({shown(found.sample(0, seed)) for seed in range(20)}) == 2


def test_boxes_are_numbers_where_the_world_has_no_location_words(
    tmp_path: Path, layouts: dict[str, Make]
) -> None:
    layouts["boxes"](tmp_path / "set")
    data = opened(tmp_path / "set", "boxes", fit="stretch")
    found = DataSource(data, "train", World()).sample(0, 0)
    assert found.segments[-1].text == "[0.25, 0.25, 0.75, 0.75]"


def test_tiles_are_several_images_of_one_sample(tmp_path: Path, layouts: dict[str, Make]) -> None:
    layouts["folder"](tmp_path / "set")
    found = source(tmp_path / "set", "folder", fit="anyres", tiles=4).sample(0, 0)
    pictures = [segment.picture for segment in found.segments if segment.picture is not None]
    assert len(pictures) == 3  # 48 x 32 px: the whole, and two tiles side by side
    assert len({picture.key for picture in pictures}) == 3
    left, right = pictures[1].pixels, pictures[2].pixels
    assert not np.array_equal(left, right)


def test_an_interleaved_record_of_llava_may_have_several_images(
    tmp_path: Path, layouts: dict[str, Make]
) -> None:
    layouts["llava"](tmp_path / "set")
    sample = source(tmp_path / "set", "llava").sample(1, 0)
    first, second = (segment.picture for segment in sample.segments if segment.picture is not None)
    assert first.key != second.key


def test_what_is_no_data_set_is_said_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(LabError, match=r"of no known format .*it holds notes\.md"):
        recognise(tmp_path)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(LabError, match="pickles and NumPy files are not opened"):
        recognise(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["refs(unc).p"]


def test_compressed_shards_are_read_like_plain_ones(tmp_path: Path, layouts: dict[str, Make]) -> None:
    import gzip

    layouts["webdataset"](tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    shard = (tmp_path / "plain" / "00000.tar").read_bytes()
    (tmp_path / "packed" / "00000.tar.gz").write_bytes(gzip.compress(shard))
    plain, packed = (source(tmp_path / place, "webdataset") for place in ("plain", "packed"))
    for row in range(2):
        one, two = plain.sample(row, 0), packed.sample(row, 0)
        assert shown(one) == shown(two)
        assert one.segments[1].picture is not None
        assert two.segments[1].picture is not None
        assert np.array_equal(one.segments[1].picture.pixels, two.segments[1].picture.pixels)
