"""Trying a trained arm by hand: a question about an image, an image from a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lab.errors import LabError
from lab.graph.arm import find_arm

if TYPE_CHECKING:
    from PIL import Image

    from components.contracts import ImageDecoder
    from lab.models.arm import Arm
    from lab.samples.tokenizer import Tokenizer


def ask(run: str, image: str, question: str) -> str:
    """The arm's answer to a question about an image file.

    Args:
        run: a trained arm (see `find_arm`).
        image: any format Pillow reads; it is resized to what the arm sees.
        question: words that the arm's tokenizer knows.
    """
    from PIL import Image, UnidentifiedImageError

    from lab.models.arm import load_arm

    arm = load_arm(find_arm(run))
    try:
        with Image.open(image) as picture:
            return answer(arm, picture, question)
    except (OSError, UnidentifiedImageError) as error:
        raise LabError(f"{image}: cannot be read as an image: {error}") from error


def answer(arm: Arm, picture: Image.Image, question: str) -> str:
    """What an arm says about a picture, which is resized to what the arm sees."""
    from PIL import Image

    from lab.evaluation.understanding import answer_all
    from lab.samples.segments import BOS, Sample, special
    from lab.samples.segments import answer as answer_segment
    from lab.samples.segments import image as image_segment
    from lab.samples.segments import question as question_segment

    side = arm.model.encoder.image_size
    seen = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(seen, np.float32).transpose(2, 0, 1) / 255
    asked = question_segment(_known(arm.tokenizer, question))
    sample = Sample("asked", "vqa", (special(BOS), image_segment(pixels), asked, answer_segment("")))
    return answer_all(arm.model, [sample], arm.tokenizer, arm.collate(("vqa",), left=True), 1)[0].given


def draw(run: str, prompt: str, out: str, seed: int) -> None:
    """Writes the image that the arm draws for a prompt.

    Args:
        run: a trained arm (see `find_arm`).
        prompt: words that the arm's tokenizer knows.
        out: image file to write, enlarged eight times.
        seed: of the image decoder's noise, if it uses any.
    """
    from lab.models.arm import load_arm
    from lab.models.store import load_component

    folder = find_arm(run)
    picture = drawing(load_arm(folder), load_component(image_decoder_of(folder.parents[1])), prompt, seed)
    try:
        picture.save(Path(out))
    except (OSError, ValueError) as error:
        raise LabError(f"{out}: cannot be written: {error}") from error


def drawing(arm: Arm, image_decoder: ImageDecoder, prompt: str, seed: int) -> Image.Image:
    """What an arm draws for a prompt, enlarged eight times."""
    from PIL import Image

    from lab.evaluation.generation import draw_all
    from lab.samples.segments import BOS, Sample, special
    from lab.samples.segments import image as image_segment
    from lab.samples.segments import question as question_segment
    from lab.scenes.preview import tile

    side = arm.model.encoder.image_size
    blank = image_segment(np.zeros((3, side, side), np.float32), supervised=True)
    words = question_segment(_known(arm.tokenizer, prompt))
    sample = Sample("drawn", "text_to_image", (special(BOS), words, blank))
    collate = arm.collate(("text_to_image",), left=True)
    drawn = draw_all(arm.model, image_decoder, [sample], collate, 1, seed)
    picture = tile(drawn.generated.numpy(), 1)
    return picture.resize((picture.width * 8, picture.height * 8), Image.Resampling.NEAREST)


def image_decoder_of(output: Path) -> Path:
    """Where an arm's image decoder is, below its outputs.

    Raises:
        LabError: the system has none.
    """
    # below its stage, or below the stage's instance; both may be links, which `**` does not follow
    places = [output / "image_decoder" / "config.json", *sorted(output.glob("image_decoder/*/config.json"))]
    for config in filter(Path.exists, places):
        if json.loads(config.read_text())["role"] == "image_decoder":
            return config.parent
    raise LabError(f"{output}: no image decoder there; this arm answers questions, but draws nothing")


def _known(tokenizer: Tokenizer, text: str) -> str:
    """The text in the form that the built-in tokenizer reads: lower case, question mark apart.

    Raises:
        LabError: naming words that the tokenizer does not know.
    """
    from lab.errors import nearest

    words = text.lower().replace("?", " ?").replace(",", " ,").split()
    vocabulary = tokenizer.tokenizer.get_vocab()
    backend = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
    # one token a word, and no unknown one; other tokenizers split the words that they do not know
    if (
        tokenizer.tokenizer.unk_token is None
        and type(getattr(backend, "model", None)).__name__ == "WordLevel"
    ):
        plain = {word for word in vocabulary if not word.startswith("<")}
        for word in words:
            if word not in plain:
                raise LabError(f"the arm has never seen the word '{word}'{nearest(word, plain)}")
        return " ".join(words)
    return text
