"""No digit crosses from one split to another: not as an instance, not as a picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lab.scenes.digits import PATCH, SPLITS, load_patches, split_instances


@pytest.mark.parametrize("seed", [0, 1])
def test_every_digit_is_in_exactly_one_split(seed: int) -> None:
    parts = split_instances(seed)
    together = np.concatenate([parts[split] for split in SPLITS])
    assert sorted(together) == list(range(1797))


def test_no_picture_is_in_two_splits() -> None:
    """Neither as it is in the source nor as a patch, distorted or not."""
    from sklearn.datasets import load_digits

    images = load_digits().images
    seen: dict[bytes, str] = {}
    for number, (split, instances) in enumerate(split_instances(0).items()):
        patches = load_patches(instances, variants=4, seed=number).patches
        pictures = [image.tobytes() for image in images[instances]]
        pictures += [patch.tobytes() for patch in patches.reshape(-1, PATCH, PATCH)]
        for picture in pictures:
            assert seen.setdefault(picture, split) == split


def test_classes_have_the_same_shares_in_every_split() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    whole = Counter(labels.tolist())
    for split, share in zip(SPLITS, (0.7, 0.15, 0.15), strict=True):
        counts = Counter(labels[split_instances(0)[split]].tolist())
        for digit in range(10):
            assert counts[digit] == pytest.approx(share * whole[digit], abs=1.01), (split, digit)


def test_patches_belong_to_their_labels_and_the_first_variant_is_undistorted() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = split_instances(0)["test"]
    digits = load_patches(rows, variants=3, seed=5)
    assert digits.patches.shape == (len(rows), 3, PATCH, PATCH)
    np.testing.assert_array_equal(digits.labels, source.target[rows])
    np.testing.assert_array_equal(digits.patches[:, 0], load_patches(rows, variants=1, seed=6).patches[:, 0])
    assert (digits.patches[:, 1] != digits.patches[:, 0]).any(axis=(1, 2)).all()
    ink = digits.patches.reshape(len(rows), 3, -1).sum(axis=2)
    assert ink.min() > 0  # no distortion pushes a digit out of its patch
