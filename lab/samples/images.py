"""Image files to the pixels that an encoder takes.

| what comes | what becomes of it |
|---|---|
| EXIF orientation | turned upright |
| CMYK, palette, grey | RGB |
| 16 bits a channel | 8 bits, by the highest ones |
| alpha | composited on white |
| animated | the first frame |
| a large JPEG | decoded at the smallest of its own scales that is not smaller than what is asked for |
| more pixels than the limit | refused from its header, before anything is decoded |
| truncated, corrupted | refused |

An image is fitted into the square of the encoder in one of four ways:

| fit | what is done |
|---|---|
| pad | scaled to fit in, centred on grey (LLaVA-1.5) |
| crop | scaled to cover, the middle cut out (CLIP) |
| stretch | scaled, its aspect ratio lost |
| anyres | several images: the whole one, stretched, then the tiles of the best grid (LLaVA-NeXT) |
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lab.samples.readers.record import BadRecordError

Fit = Literal["pad", "crop", "stretch", "anyres"]
FITS: tuple[Fit, ...] = ("pad", "crop", "stretch", "anyres")
LIMIT = 100_000_000  # pixels, unless a data set states another
_GREY = (127, 127, 127)
_WHITE = (255, 255, 255, 255)
# no format that runs a program (EPS), fetches, or leads to other files
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")


@dataclass(frozen=True)
class Fitting:
    """How images become those of an encoder.

    Attributes:
        size: px, the side of its square.
        fit: one of FITS.
        tiles: at most so many tiles, for anyres.
    """

    size: int
    fit: Fit = "pad"
    tiles: int = 4

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image of this size."""
        return best_grid(width, height, self.size, self.tiles)

    def pieces(self, width: int, height: int) -> int:
        """Images that one of this size becomes."""
        if self.fit != "anyres":
            return 1
        rows, columns = self.grid(width, height)
        return 1 + rows * columns

    def place(self, corners: Sequence[float], width: int, height: int) -> np.ndarray:
        """A box (4,) of an image, px, in the square (in its first piece), whole px within it."""
        across, down = self.size / width, self.size / height
        if self.fit in ("pad", "crop"):
            across = down = min(across, down) if self.fit == "pad" else max(across, down)
        left, top = (self.size - width * across) / 2, (self.size - height * down) / 2
        x0, y0, x1, y1 = corners
        placed = np.array(
            [
                np.floor(x0 * across + left),
                np.floor(y0 * down + top),
                np.ceil(x1 * across + left),
                np.ceil(y1 * down + top),
            ]
        )
        return placed.clip(0, self.size).astype(np.int64)


def size_of(data: bytes, limit: int = LIMIT) -> tuple[int, int]:
    """Width and height, px, once upright, from the header alone.

    Raises:
        BadRecordError: no image, or an absurd size.
    """
    with _opened(data, limit) as image:
        return _upright_size(image)


def decode(data: bytes, limit: int = LIMIT, least: int = 0) -> Image.Image:
    """An image in RGB, upright.

    Args:
        data: the bytes of its file.
        limit: most pixels that it may have.
        least: px; a JPEG may be decoded smaller than it is, but no side below this. 0 for the full size.

    Raises:
        BadRecordError: corrupted, truncated, or of an absurd size.
    """
    with _opened(data, limit) as image:
        if least:
            image.draft(None, (least, least))  # of JPEG alone; other formats ignore it
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.seek(0)
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, IndexError, EOFError, MemoryError) as error:
            message = str(error) or type(error).__name__
            cut = "truncated" in message or "unexpected end" in message or isinstance(error, EOFError)
            raise BadRecordError("truncated_image" if cut else "corrupted_image", message) from error


def fitted(
    image: Image.Image, fitting: Fitting, grid: tuple[int, int] = (1, 1), piece: int = 0
) -> np.ndarray:
    """Pixels (3, S, S) float32 in [0, 1] of one of the images that an image becomes.

    Args:
        image: in RGB.
        fitting: how.
        grid: of tiles, for anyres (see `Fitting.grid`).
        piece: which, from 0; for anyres the whole image, then its tiles row by row.
    """
    side = (fitting.size, fitting.size)
    if fitting.fit == "pad":
        square = ImageOps.pad(image, side, Image.Resampling.BICUBIC, color=_GREY)
    elif fitting.fit == "crop":
        square = ImageOps.fit(image, side, Image.Resampling.BICUBIC)
    elif fitting.fit == "stretch" or piece == 0:
        square = image.resize(side, Image.Resampling.BICUBIC)
    else:
        rows, columns = grid
        whole = (columns * fitting.size, rows * fitting.size)
        padded = ImageOps.pad(image, whole, Image.Resampling.BICUBIC, color=_GREY)
        row, column = divmod(piece - 1, columns)
        corner = (column * fitting.size, row * fitting.size)
        square = padded.crop((*corner, corner[0] + fitting.size, corner[1] + fitting.size))
    return np.asarray(square, np.float32).transpose(2, 0, 1) / np.float32(255)


def best_grid(width: int, height: int, side: int, tiles: int) -> tuple[int, int]:
    """Rows and columns of tiles, at most `tiles` of them, in which most of an image's own pixels survive.

    Of equally good grids the one that wastes least of its area (arXiv:2310.03744 and LLaVA-NeXT's code).
    """
    best, chosen = (-1.0, 0.0), (1, 1)
    for rows in range(1, tiles + 1):
        for columns in range(1, tiles // rows + 1):
            wide, high = columns * side, rows * side
            scale = min(wide / width, high / height)
            kept = float(min(int(width * scale) * int(height * scale), width * height))
            score = (kept, kept - wide * high)
            if score > best:
                best, chosen = score, (rows, columns)
    return chosen


def fingerprint(image: Image.Image) -> int:
    """64 bits that survive scaling, recompression and small changes of light: signs of a cosine transform.

    The lowest 8 x 8 frequencies of a 32 x 32 grey image, each against their median (a perceptual hash).
    """
    from scipy.fft import dctn

    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    return int(sum(1 << bit for bit, high in enumerate(low > np.median(low[1:])) if high))


def content_key(digest: str, fitting: Fitting, piece: int) -> str:
    """Names the pixels: the file's bytes and what is done to them; 32 hex digits."""
    tiles = fitting.tiles if fitting.fit == "anyres" else 0
    text = f"{digest}/{fitting.size}/{fitting.fit}/{tiles}/{piece}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _opened(data: bytes, limit: int) -> Any:
    try:
        Image.init()  # or formats that no image needed so far are unknown
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit follows
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadRecordError("absurd_size", f"at most {limit:,} pixels: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        found = "no bytes" if not data else f"{len(data)} bytes that are no image of a known format"
        raise BadRecordError("corrupted_image", found) from error
    width, height = image.size
    if width * height > limit or min(width, height) < 1:
        raise BadRecordError("absurd_size", f"{width} x {height} px; at most {limit:,} pixels")
    return image


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    try:
        turned = image.getexif().get(0x0112, 1) >= 5
    except (OSError, ValueError, SyntaxError, TypeError):
        turned = False
    return (height, width) if turned else (width, height)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        if image.mode != "F":
            values = values / 256  # 16 bits
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _WHITE), over).convert("RGB")
    return image.convert("RGB")
