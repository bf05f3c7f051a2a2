"""How close reconstructions are to their originals: PSNR, SSIM, LPIPS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.evaluation.subject import NotAdmittedError

BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's name of the file
SMALLEST = 32  # px: below, LPIPS' AlexNet has no pixel left
# convolution of torchvision's AlexNet -> slice of lpips'
_SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}


def ssim(given: Tensor, true: Tensor) -> np.ndarray:
    """Structural similarity of each image (B,), at most 1; pixels (B, 3, H, W) in [0, 1].

    Wang et al., 2004: Gaussian windows of 11 px with deviation 1.5, k1 0.01, k2 0.03, mean over
    channels and over all pixels, images mirrored at their edges (torchmetrics).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(given, true, data_range=1.0, reduction="none")
    return np.atleast_1d(torch.as_tensor(found).numpy())


def backbone() -> Path:
    """Where LPIPS' AlexNet is looked for."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


class Lpips:
    """Learned perceptual distance (arXiv:1801.03924), version 0.1 with AlexNet.

    The small linear layers come with the package lpips. The backbone does not: it is read from
    `$TORCH_HOME/hub/checkpoints/`, where torchvision would put it. Nothing is downloaded.

    Raises:
        NotAdmittedError: it is not there.
    """

    def __init__(self) -> None:
        import lpips

        place = backbone()
        if not place.is_file():
            raise NotAdmittedError(
                "LPIPS needs AlexNet's weights, and nothing is downloaded; put torchvision's file at "
                f"{place} (https://download.pytorch.org/models/{BACKBONE})"
            )
        self.model: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        stored = torch.load(place, map_location="cpu", weights_only=True)
        renamed = {
            f"slice{number}.{index}.{kind}": stored[f"features.{index}.{kind}"]
            for index, number in _SLICES.items()
            for kind in ("weight", "bias")
        }
        self.model.net.load_state_dict(renamed)  # strict: every weight is replaced
        self.model.eval()

    @torch.no_grad()
    def __call__(self, given: Tensor, true: Tensor) -> np.ndarray:
        """Distance of each image (B,), 0 for equal ones; pixels (B, 3, H, W) in [0, 1], 32 px or more."""
        if given.shape[-1] < SMALLEST:
            raise NotAdmittedError(f"LPIPS needs images of {SMALLEST} px, not {given.shape[-1]}")
        parts = zip(given.split(50), true.split(50), strict=True)
        return np.asarray(torch.cat([self.model(a, b, normalize=True).flatten() for a, b in parts]).numpy())
