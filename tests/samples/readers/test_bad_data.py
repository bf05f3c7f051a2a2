"""Every kind of bad data: the message with file, line and record, the count, and the three policies."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.config import DataSetParams
from lab.errors import LabError
from lab.graph.importing import import_data, inspected
from lab.samples.datasets import DataSet, DataSource, check_policy, quarantine
from lab.samples.images import LIMIT
from lab.samples.indexing import build
from lab.samples.readers.formats import recognise
from lab.samples.readers.record import KINDS
from lab.scenes.world import World
from tests.samples.readers.conftest import encoded, put, talk

GOOD = talk(0, "<image> What?", "A cat.", image="good.png")


def lines(*records: Any) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in records)


def conversations(bad: Any) -> Callable[[Path], None]:
    """A good record, a bad one in line 2, a good one."""

    def make(root: Path) -> None:
        put(root, "good.png", 0)
        put(root, "talks.jsonl", lines(GOOD, bad, GOOD))

    return make


def with_image(name: str, data: bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        conversations(talk(1, "What?", "A dog.", image=name))(root)
        put(root, name, data)

    return make


def shard(*extra: tarfile.TarInfo) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        root.mkdir(parents=True)
        with tarfile.open(root / "0.tar", "w") as archive:
            for name, data in (("0.png", encoded(0)), ("0.txt", b"a cat")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            for member in extra:
                archive.addfile(member, io.BytesIO(bytes(member.size)))

    return make


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, target, size
    return made


def wide() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def noise() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def outward(root: Path) -> None:
    put(root.parent, "secret.png", 3)
    conversations(talk(1, "What?", "A dog.", image="link.png"))(root)
    (root / "link.png").symlink_to("../secret.png")


def linked_image(root: Path) -> None:
    image_folder("a dog")(root)
    (root / "1.png").rename(root.parent / "secret.png")
    (root / "1.png").symlink_to("../secret.png")
    (root / "round").symlink_to(".", target_is_directory=True)


def box(x: float, width: int) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, "1.png", 1)
        region = {"image_id": 1, "phrase": "the cat", "x": x, "y": 2, "width": width, "height": 9}
        put(root, "regions.json", [{"id": 1, "regions": [{**region, "x": 3, "width": 9}, region]}])

    return make


def documents(bad: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, "docs.jsonl", lines({"texts": ["First."], "images": [None]}, bad))

    return make


def table(root: Path) -> None:
    """A caption without an image would teach to describe what is not seen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    pq.write_table(pa.table({"image": [encoded(0), None], "caption": ["a cat", "a dog"]}), root / "a.parquet")


def image_folder(caption: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for number, text in enumerate(["a cat", caption]):
            put(root, f"{number}.png", number)
            put(root, f"{number}.txt", text)

    return make


# kind, format, what writes the data, the message; every kind of bad data that docs/data.md lists
CASES: list[tuple[str, str, Callable[[Path], None], str]] = [
    (
        "broken_json",
        "llava",
        conversations(b'{"id": "1", "conv\n'),
        "talks.jsonl, line 2, record 2: broken json: ",
    ),
    (
        "not_utf8",
        "llava",
        conversations(b'{"id": "caf\xe9"}\n'),
        "talks.jsonl, line 2, record 2: not utf8: byte 11 (0xe9)",
    ),
    (
        "missing_field",
        "llava",
        conversations({"id": "1", "image": "good.png"}),
        "line 2, record 2: missing field: no 'conversations'; it has id, image",
    ),
    ("missing_field", "llava", conversations([1, 2]), "missing field: expected an object, not [1, 2]"),
    (
        "missing_field",
        "llava",
        conversations(talk(1, "What?", "A dog.", image=7)),
        "missing field: 'image': expected str or list, not 7",
    ),
    (
        "missing_field",
        "llava",
        conversations(talk(1, "What?") | {"conversations": [{"from": "robot", "value": "x"}]}),
        "missing field: turn 1: nobody is called 'robot'",
    ),
    (
        "empty_answer",
        "llava",
        conversations(talk(1, "What?", "  ")),
        "empty answer: the answer of turn 2 has no word",
    ),
    ("empty_answer", "folder", image_folder(" \n"), "1.png, record 2: empty answer: the caption has no word"),
    (
        "marker_without_image",
        "llava",
        conversations(talk(1, "<image> <image> What?", "A dog.", image="good.png")),
        "marker without image: 2 markers '<image>', 1 images",
    ),
    (
        "image_without_marker",
        "llava",
        conversations(talk(1, "<image> What?", "A dog.", image=["good.png"] * 2)),
        "image without marker: 2 images, 1 markers '<image>'",
    ),
    (
        "missing_file",
        "llava",
        conversations(talk(1, "What?", "A dog.", image="gone.png")),
        "missing file: no file 'gone.png' in ",
    ),
    (
        "unsafe_path",
        "llava",
        conversations(talk(1, "What?", "A dog.", image="../../etc/passwd")),
        "unsafe path: '../../etc/passwd' leads out of its folder",
    ),
    (
        "unsafe_path",
        "llava",
        conversations(talk(1, "What?", "A dog.", image="/etc/passwd")),
        "unsafe path: '/etc/passwd' leads out of its folder",
    ),
    ("unsafe_path", "llava", outward, "is a link that leads out of "),
    ("unsafe_path", "folder", linked_image, "1.png, record 2: unsafe path: "),
    (
        "unsafe_path",
        "webdataset",
        shard(member("../../evil.txt", size=4)),
        "0.tar, record 1: unsafe path: member '../../evil.txt' leads out of its folder",
    ),
    (
        "unsafe_path",
        "webdataset",
        shard(member("/evil.txt", size=4)),
        "unsafe path: member '/evil.txt' leads out of its folder",
    ),
    (
        "unsafe_path",
        "webdataset",
        shard(member("1.txt", tarfile.SYMTYPE, "/etc/passwd")),
        "unsafe path: member '1.txt' is a symbolic link",
    ),
    (
        "unsafe_path",
        "webdataset",
        shard(member("1.txt", tarfile.LNKTYPE, "0.txt")),
        "unsafe path: member '1.txt' is a hard link",
    ),
    (
        "unsafe_path",
        "webdataset",
        shard(member("1.png", tarfile.CHRTYPE)),
        "unsafe path: member '1.png' is a device",
    ),
    (
        "corrupted_image",
        "llava",
        with_image("bad.png", b"this is no image at all"),
        "corrupted image: 'bad.png': 23 bytes that are no image of a known format",
    ),
    ("corrupted_image", "llava", with_image("bad.png", b""), "corrupted image: 'bad.png': no bytes"),
    ("truncated_image", "llava", with_image("cut.jpg", noise()[:1500]), "truncated image: 'cut.jpg': "),
    (
        "absurd_size",
        "llava",
        with_image("huge.png", wide()),
        "absurd size: 'huge.png': 12000 x 10000 px; at most 100,000,000 pixels",
    ),
    (
        "bad_box",
        "boxes",
        box(40, 30),
        "regions.json, line 2, record 2: bad box: [40.0, 2.0, 70.0, 11.0] in an image of 48 x 32 px",
    ),
    ("bad_box", "boxes", box(float("nan"), 9), "bad box: [nan, 2, 9, 9]: expected x, y, width and height"),
    ("bad_box", "boxes", box(10**400, 9), "bad box: [1000"),
    ("missing_field", "interleaved", documents(5), "missing field: expected an object, not 5"),
    (
        "missing_field",
        "interleaved",
        documents({"texts": [None, "A."], "images": [7, None]}),
        "missing field: 'images': expected str, not 7",
    ),
    ("missing_field", "hf", table, "missing field: a caption of no image; it has image, caption"),
    (
        "missing_file",
        "llava",
        conversations(talk(1, "What?", "A dog.", image="x" * 300)),
        "missing file: no file 'xxxx",
    ),
    ("bad_box", "boxes", box(4, 0), "bad box: [4, 2, 0, 9]: expected x, y, width and height"),
]


def opened(root: Path, name: str, policy: str) -> DataSet:
    index = build(root, name, LIMIT, root.with_name(f"{root.name}-index"))
    return DataSet("mine", DataSetParams(str(root), name, policy), index)


@pytest.mark.parametrize(
    ("kind", "name", "make", "message"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)]
)
def test_bad_data_is_reported_counted_and_left_out(
    tmp_path: Path, kind: str, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "set")
    data = opened(tmp_path / "set", name, "error")
    with pytest.raises(LabError, match="data set 'mine': 1 bad records of ") as caught:
        check_policy(data)
    assert message in str(caught.value)
    good = len(data)
    assert good >= 1
    assert data.metrics() == {
        "data/mine/rows": good,
        "data/mine/skipped": 1,
        f"data/mine/skipped_{kind}": 1,
    }
    skipping = DataSet("mine", DataSetParams("", name, "skip"), data.index)
    check_policy(skipping)  # says nothing, but counts
    assert skipping.metrics() == data.metrics()
    quarantine(data, tmp_path / "apart")
    (kept,) = [json.loads(line) for line in (tmp_path / "apart" / "records.jsonl").open()]
    assert kept["kind"] == kind
    assert kept["raw"]


def test_the_table_of_the_docs_has_every_kind_with_a_message_that_is_tested() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    text = text.partition("## Bad data")[2].partition("## Splits")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert {kind: meaning for kind, meaning, _ in rows} == KINDS
    for kind, _, message in rows:
        tested = [case[3] for case in CASES if case[0] == kind]
        assert any(message.strip("`") in one for one in tested), message


def test_nothing_of_an_archive_is_written_anywhere(tmp_path: Path) -> None:
    shard(member("../../evil.txt", size=4), member("sub/../../evil.txt", size=4))(
        tmp_path / "a" / "b" / "set"
    )
    data = opened(tmp_path / "a" / "b" / "set", "webdataset", "skip")
    assert data.index.counts["problems"] == {"unsafe_path": 2}
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_link_into_the_cache_of_dvc_is_no_way_out(tmp_path: Path) -> None:
    """With `cache.type symlink` every file of a data set is such a link."""
    conversations(GOOD)(tmp_path / "set")
    cached = tmp_path / ".dvc" / "cache" / "files" / "md5" / "ab" / ("0" * 30)
    cached.parent.mkdir(parents=True)
    (tmp_path / "set" / "good.png").rename(cached)
    (tmp_path / "set" / "good.png").symlink_to(cached)
    assert opened(tmp_path / "set", "llava", "error").index.counts["problems"] == {}


def test_one_bad_element_of_an_array_spoils_no_other(tmp_path: Path) -> None:
    put(tmp_path / "set", "good.png", 0)
    good = json.dumps(GOOD).encode()
    put(tmp_path / "set", "talks.json", b"[" + good + b',\n{"id": "\xff"},\n' + good + b"]")
    data = opened(tmp_path / "set", "llava", "skip")
    assert len(data) == 2
    assert [str(one) for one in data.index.problems()] == [
        "talks.json, line 2, record 2: not utf8: byte 8 (0xff)"
    ]


def test_an_array_that_breaks_off_is_refused_with_its_line(tmp_path: Path) -> None:
    put(tmp_path / "set", "good.png", 0)
    put(tmp_path / "set", "talks.json", b"[\n" + json.dumps(GOOD).encode() + b',\n{"id": "1", "conv')
    with pytest.raises(
        LabError, match=r"talks\.json, line 3: expected a value, found .*nothing after it can be"
    ):
        opened(tmp_path / "set", "llava", "skip")


@pytest.mark.parametrize("bad", [b"no JSON\n", b"5\n"])
def test_a_bad_record_at_the_beginning_hides_no_file(tmp_path: Path, bad: bytes) -> None:
    put(tmp_path / "set", "good.png", 0)
    put(tmp_path / "set", "talks.jsonl", lines(bad, GOOD))
    put(tmp_path / "set", "more.jsonl", lines(GOOD))
    assert recognise(tmp_path / "set") == "llava"
    data = opened(tmp_path / "set", "llava", "skip")
    assert (len(data), data.skipped) == (2, 1)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    put(tmp_path / "lines", "talks.jsonl", mark + lines(talk(0, "What?", "This.")))
    put(tmp_path / "table", "metadata.csv", mark + b"file_name,text\n0.png,a cat\n")
    put(tmp_path / "texts", "0.txt", mark + b"a cat")
    for name in ("table", "texts"):
        put(tmp_path / name, "0.png", 0)
    for name, said in (("lines", "This."), ("table", "a cat"), ("texts", "a cat")):
        data = opened(tmp_path / name, recognise(tmp_path / name), "error")
        assert data.index.row(0).turns[-1] == ("assistant", (said,))


def test_records_of_one_id_are_samples_of_different_names(tmp_path: Path) -> None:
    """As published conversations have them: several about one image, under its id."""
    put(tmp_path / "set", "a.json", [talk(0, "What?", "This."), talk(0, "Why?", "That.")])
    put(tmp_path / "set", "b.json", [talk(0, "Who?", "Ann.")])
    source = DataSource(opened(tmp_path / "set", "llava", "error"), "train", World())
    assert len({source.sample(row, 0).id for row in range(3)}) == 3


@pytest.mark.parametrize("way", [inspected, partial(import_data, name="mine")])
def test_a_set_without_a_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., DataSet]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "params.yaml", (Path(__file__).parents[3] / "params.yaml").read_bytes())
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    put(tmp_path, "set/0.tar", (tmp_path / "0.tar").read_bytes())
    with pytest.raises(LabError, match="set: no record of format webdataset"):
        way("set", stated={})
    assert not (tmp_path / "datasets" / "mine").exists()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"splits": {"foo": 0.1}}, "splits: no split 'foo'"),
        ({"splits": {"validation": 2.0}, "limit": 0}, "splits: expected shares .*limit' must be from 1 to"),
        ({"format": "lava"}, r"format: no 'lava' \(did you mean 'llava'\?\)"),
    ],
)
@pytest.mark.parametrize("way", [inspected, partial(import_data, name="mine")])
def test_what_is_stated_is_checked_before_a_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., DataSet], stated: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "params.yaml", (Path(__file__).parents[3] / "params.yaml").read_bytes())
    conversations(5)(tmp_path / "set")
    with pytest.raises(LabError, match=message):
        way("set", stated=stated)
    assert not (tmp_path / ".lab").exists()
    assert not (tmp_path / "datasets").exists()
