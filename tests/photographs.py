"""Makes a folder in LLaVA's JSON format out of real photographs: those that ship with scikit-image.

    python tests/photographs.py FOLDER

Each photograph is there whole and in five cuts, with questions about what it shows; `photos.json` has the
conversations, `images/` the files: JPEG, PNG, grey, in colour, wide and high.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

# file in skimage/data -> what it shows, and whether it is in colour
SHOWN = {
    "astronaut.png": ("an astronaut", True),
    "camera.png": ("a photographer", False),
    "chelsea.png": ("a cat", True),
    "coffee.png": ("a cup of coffee", True),
    "rocket.jpg": ("a rocket", True),
    "motorcycle_left.png": ("a motorcycle", True),
    "hubble_deep_field.jpg": ("galaxies", True),
    "moon.png": ("the moon", False),
    "coins.png": ("coins", False),
    "grass.png": ("grass", False),
    "brick.png": ("bricks", False),
    "retina.jpg": ("an eye", True),
}
CUTS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.8, 0.8), (0.2, 0.0, 1.0, 0.8), (0.0, 0.2, 0.8, 1.0))
CUTS += ((0.2, 0.2, 1.0, 1.0), (0.1, 0.1, 0.9, 0.9))


def photographs() -> Path:
    """The folder of scikit-image's own photographs; nothing is downloaded."""
    import skimage

    return Path(skimage.__file__).parent / "data"


def make(folder: Path) -> int:
    """Writes the folder; how many conversations it holds."""
    (folder / "images").mkdir(parents=True)
    records = []
    for name, (thing, coloured) in SHOWN.items():
        with Image.open(photographs() / name) as photograph:
            photograph.thumbnail((320, 320))
            for number, cut in enumerate(CUTS):
                width, height = photograph.size
                box = [round(share * side) for share, side in zip(cut, (width, height) * 2, strict=True)]
                suffix = ".jpg" if number % 2 else ".png"
                file = f"{Path(name).stem}-{number}{suffix}"
                photograph.crop((box[0], box[1], box[2], box[3])).save(folder / "images" / file)
                turns = [
                    ("human", "<image>\nWhat is in the photograph?"),
                    ("gpt", f"It shows {thing}."),
                    ("human", "Is it in color?"),
                    ("gpt", "Yes." if coloured else "No."),
                ]
                said = [{"from": side, "value": text} for side, text in turns]
                records.append({"id": Path(file).stem, "image": file, "conversations": said})
    (folder / "photos.json").write_text(json.dumps(records, indent=1))
    return len(records)


if __name__ == "__main__":
    print(f"{make(Path(sys.argv[1]))} conversations in {sys.argv[1]}")
