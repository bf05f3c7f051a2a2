"""Small data sets in every public format, as their publishers lay them out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Make = Callable[[Path], None]


def picture(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """An image unlike all others."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def encoded(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, name: str, content: Any = 0) -> None:
    """Writes an image (by number), bytes, text, a list of records as lines, or any other value as JSON."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        picture(content).save(file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, str):
        file.write_text(content)
    elif isinstance(content, list) and file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in content))
    else:
        file.write_text(json.dumps(content, indent=1))


def talk(number: int, *turns: str, **more: Any) -> dict[str, Any]:
    """A record of LLaVA's."""
    sides = ("human", "gpt")
    said = [{"from": sides[place % 2], "value": text} for place, text in enumerate(turns)]
    return {"id": str(number), **more, "conversations": said}


def llava(root: Path) -> None:
    for number in range(3):
        put(root, f"images/{number}.png", number)
    records = [
        talk(0, "<image>\nWhat is this?", "A cat.", "Is it big?", "No.", image="0.png"),
        talk(1, "Is <image> like <image> ?", "Not at all.", image=["1.png", "2.png"]),
        talk(2, "Say a number.", "Two."),
    ]
    put(root, "train.json", records)


def coco(root: Path) -> None:
    for number in (7, 8):
        put(root, f"val2014/COCO_val2014_{number:012}.jpg", number)
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in (7, 8)]
    captions = [
        {"image_id": 7, "id": 1, "caption": "A red cat."},
        {"image_id": 8, "id": 2, "caption": "A dog."},
        {"image_id": 7, "id": 3, "caption": "A cat that is red."},
    ]
    put(root, "captions_val2014.json", {"info": {"year": 2014}, "images": images, "annotations": captions})


def vqav2(root: Path) -> None:
    put(root, "val2014/COCO_val2014_000000000009.jpg", 9)
    asked = [{"image_id": 9, "question": "What color is it?", "question_id": 9001}]
    people = [{"answer": word, "answer_id": place} for place, word in enumerate(["blue"] * 2 + ["red"] * 8)]
    put(root, "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": asked})
    notes = [{"question_id": 9001, "image_id": 9, "multiple_choice_answer": "red", "answers": people}]
    put(root, "v2_mscoco_val2014_annotations.json", {"annotations": notes})


def gqa(root: Path) -> None:
    put(root, "images/2370799.jpg", 1)
    asked = {
        "imageId": "2370799",
        "question": "Is the sky dark?",
        "answer": "yes",
        "fullAnswer": "Yes, it is.",
    }
    put(root, "val_balanced_questions.json", {"05451384": asked, "05451385": {**asked, "answer": "no"}})


def textvqa(root: Path) -> None:
    put(root, "train_images/003a8ae2ef43b901.jpg", 1)
    asked = {
        "question": "what is the brand?",
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "answers": ["dakota"] * 9 + ["nous"],
        "set_name": "val",
    }
    put(root, "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [asked]})


def pope(root: Path) -> None:
    put(root, "val2014/COCO_val2014_000000310196.jpg", 1)
    lines = [
        {
            "question_id": number,
            "image": "COCO_val2014_000000310196.jpg",
            "text": f"Is there a {what} in the image?",
            "label": label,
        }
        for number, (what, label) in enumerate([("dog", "yes"), ("fork", "no")], start=1)
    ]
    put(root, "coco_pope_random.json", "".join(json.dumps(line) + "\n" for line in lines))


def edits(root: Path) -> None:
    for number in range(2):
        put(root, f"0000{number}/77_0.jpg", number)
        put(root, f"0000{number}/77_1.jpg", number + 10)
        put(
            root,
            f"0000{number}/prompt.json",
            {"caption": "a cat", "edit": "make it blue", "output": "a blue cat"},
        )


def interleaved(root: Path) -> None:
    for number in range(3):
        put(root, f"images/{number}.png", number)
    mmc4 = {
        "text_list": ["First.", "Then a cat.", "The end."],
        "image_info": [
            {"image_name": "0.png", "matched_text_index": 1},
            {"image_name": "1.png", "matched_text_index": 2},
        ],
    }
    obelics = {"texts": [None, "Only this."], "images": ["2.png", None]}
    last = {"texts": ["Look.", None], "images": [None, "0.png"]}
    put(root, "docs_shard_0.jsonl", [mmc4, obelics, last])


def webdataset(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "00000.tar", "w") as shard:
        for stem, files in {
            "000": {"png": encoded(0), "txt": b"a cat"},
            "001": {"png": encoded(1), "json": b'{"question": "what?", "answers": ["dog", "dog"]}'},
        }.items():
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{stem}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def hf(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(number), "path": None} for number in range(2)]
    table = pa.table(
        {"image": images, "question": ["what?", "who?"], "answers": [["cat", "cat"], ["Ann", "Bo"]]}
    )
    pq.write_table(table, root / "validation-00000-of-00001.parquet")
    saved = pa.table({"image": images[:1], "caption": ["a cat"]})
    with pa.ipc.new_stream(str(root / "data-00000-of-00001.arrow"), saved.schema) as writer:
        writer.write_table(saved)


def boxes(root: Path) -> None:
    put(root, "VG_100K/1.jpg", 1)
    region = {"region_id": 5, "image_id": 1, "phrase": "the cat", "x": 12, "y": 8, "width": 24, "height": 16}
    put(root, "region_descriptions.json", [{"id": 1, "regions": [region]}])


def folder(root: Path) -> None:
    for number, caption in enumerate(["a cat", "a dog"]):
        put(root, f"{number}.png", number)
        put(root, f"{number}.txt", caption + "\n")


LAYOUTS: dict[str, Make] = {
    make.__name__: make
    for make in (
        llava,
        coco,
        vqav2,
        gqa,
        textvqa,
        pope,
        edits,
        interleaved,
        webdataset,
        hf,
        boxes,
        folder,
    )
}


@pytest.fixture
def layouts() -> dict[str, Make]:
    """Format -> what writes a small data set of it to a folder."""
    return LAYOUTS
