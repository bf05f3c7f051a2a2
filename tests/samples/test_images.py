"""Images of every make come out as RGB squares; what cannot be decoded is refused with its reason."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.samples.images import Fitting, best_grid, content_key, decode, fingerprint, fitted, size_of
from lab.samples.readers.record import BadRecordError


def stored(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def halves(size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    image = halves()
    turned = {
        1: image,
        2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: image.rotate(180, expand=True),
        4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: image.transpose(Image.Transpose.TRANSPOSE),
        6: image.rotate(90, expand=True),
        7: image.transpose(Image.Transpose.TRANSVERSE),
        8: image.rotate(-90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(turned, exif=exif)
    assert size_of(data) == (64, 32)
    assert np.array_equal(np.asarray(decode(data)), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (stored(Image.fromarray(np.full((8, 8), 0x80FF, np.uint16))), (128, 128, 128)),
        (stored(Image.new("L", (8, 8), 77)), (77, 77, 77)),
        (stored(Image.new("1", (8, 8), 1)), (255, 255, 255)),
        (stored(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), (255, 255, 255)),  # on white
        (stored(Image.new("LA", (8, 8), (0, 255))), (0, 0, 0)),
        (stored(Image.new("P", (8, 8), 0), transparency=0), (255, 255, 255)),
        (
            stored(
                Image.new("RGB", (8, 8), (0, 255, 0)),
                "GIF",
                save_all=True,
                append_images=[Image.new("RGB", (8, 8), (255, 0, 0))],
            ),
            (0, 255, 0),  # the first frame
        ),
    ],
    ids=["cmyk", "16-bit", "grey", "1-bit", "transparent", "grey-alpha", "palette-alpha", "animated"],
)
def test_colours_become_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    image = decode(data)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 3


def test_a_large_jpeg_is_decoded_at_its_own_smaller_scale() -> None:
    data = stored(halves((1600, 800)), "JPEG")
    small = decode(data, least=90)
    assert small.size == (200, 100)  # an eighth, and no side below 90
    assert decode(data).size == (1600, 800)
    exact = fitted(decode(data), Fitting(32, "stretch"))
    assert np.abs(fitted(small, Fitting(32, "stretch")) - exact).mean() < 0.02


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_cut_file_is_refused_or_whole(kind: str, share: float) -> None:
    rng = np.random.default_rng(0)
    data = stored(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    with pytest.raises(BadRecordError) as caught:
        decode(data[: int(len(data) * share)])
    assert caught.value.kind in ("truncated_image", "corrupted_image")


def test_a_bomb_is_refused_from_its_header() -> None:
    for width in (11_000, 20_000):  # beyond Pillow's own limit too
        with pytest.raises(BadRecordError, match=r"at most 100,000,000 pixels") as caught:
            decode(stored(Image.new("1", (width, 10_000))))
        assert caught.value.kind == "absurd_size"
    with pytest.raises(BadRecordError):
        size_of(stored(halves()), limit=100)


def test_programs_are_not_run() -> None:
    """EPS is a program for Ghostscript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadRecordError, match="no image of a known format"):
        decode(postscript)


def test_fits_place_the_image_as_they_say() -> None:
    image = halves()  # 64 x 32
    padded = fitted(image, Fitting(32, "pad"))
    assert np.allclose(padded[:, :8].mean(axis=(1, 2)), 127 / 255, atol=0.01)  # grey above
    assert padded[0, 16, 2] > 0.95
    assert padded[2, 16, -3] > 0.95
    cropped = fitted(image, Fitting(32, "crop"))
    assert cropped[0, :, 0].min() > 0.95
    assert cropped[2, :, -1].min() > 0.95
    stretched = fitted(image, Fitting(32, "stretch"))
    assert stretched[0, :, :14].min() > 0.9
    for one in (padded, cropped, stretched):
        assert one.dtype == np.float32


def test_tiles_show_the_image_part_by_part() -> None:
    fitting = Fitting(32, "anyres", tiles=4)
    assert fitting.grid(64, 32) == (1, 2)
    assert fitting.pieces(64, 32) == 3
    image = halves()
    left, right = (fitted(image, fitting, (1, 2), piece) for piece in (1, 2))
    assert left[0, :, :30].min() > 0.95
    assert right[2, :, 2:].min() > 0.95


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((336, 336), (1, 1)),
        ((672, 336), (1, 2)),
        ((336, 672), (2, 1)),
        ((672, 672), (2, 2)),
        ((1344, 336), (1, 4)),
    ],
)
def test_the_grid_keeps_most_pixels(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert best_grid(*size, 336, 4) == grid


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_box_goes_where_its_content_goes(fit: Any) -> None:
    image = Image.new("RGB", (120, 80), (0, 0, 0))
    image.paste((255, 255, 255), (50, 30, 80, 60))
    fitting = Fitting(64, fit)
    pixels = fitted(image, fitting)
    rows, columns = np.nonzero((pixels > 0.6).all(axis=0))
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(fitting.place((50, 30, 80, 60), 120, 80) - found).max() <= 1


def test_keys_name_bytes_and_what_is_done_to_them() -> None:
    keys = {
        content_key(digest, fitting, piece)
        for digest in ("a", "b")
        for fitting in (Fitting(32), Fitting(64), Fitting(32, "crop"))
        for piece in (0, 1)
    }
    assert len(keys) == 12
    assert content_key("a", Fitting(32, "pad", 4), 0) == content_key("a", Fitting(32, "pad", 9), 0)


def test_fingerprints_survive_what_copies_go_through() -> None:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(20)]
    images = [one.resize((120, 90), Image.Resampling.BICUBIC) for one in coarse]
    prints = [fingerprint(one) for one in images]
    for image, print_ in zip(images, prints, strict=True):
        smaller = image.resize((60, 45), Image.Resampling.BILINEAR)
        recoded = Image.open(io.BytesIO(stored(smaller, "JPEG", quality=60)))
        assert (fingerprint(recoded) ^ print_).bit_count() <= 6
    apart = [(one ^ two).bit_count() for n, one in enumerate(prints) for two in prints[:n]]
    assert min(apart) > 12
