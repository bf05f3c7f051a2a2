"""The loss of an autoencoder's decoder: absolute, perceptual and adversarial terms."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

__all__ = ["Reconstruction"]


class Reconstruction(nn.Module):
    """Compares drawn pixels with true ones; with an adversarial term it holds the discriminator.

    Args:
        perceptual: weight of LPIPS; its backbone comes from torchvision, its linear layers with the library.
        backbone: of LPIPS.
        adversarial: weight of the generator's term against a PatchGAN discriminator; 0 for none. It is
            constant: VQ-GAN's adaptive weight needs gradients of the decoder's last layer for each term.
        adversarial_start: training steps before discriminator and adversarial term begin.
        channels: width of the discriminator's first layer.
        layers: its convolutions of stride 2.

    Shapes: drawn, pixels (B, 3, H, W) in [-1, 1] -> loss (B,).
    """

    step: Tensor

    def __init__(
        self,
        perceptual: float,
        backbone: Literal["vgg", "alex", "squeeze"],
        adversarial: float,
        adversarial_start: int,
        channels: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.perceptual, self.adversarial, self.start = perceptual, adversarial, adversarial_start
        # in a tuple, and so no part of this module: a measure that nothing may train and no checkpoint needs
        self._lpips = (_lpips(backbone),) if perceptual else ()
        if adversarial:
            self.discriminator = _patch_gan(channels, layers)
            self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """Loss per sample (B,); in eval mode without the adversarial terms, whose scale drifts."""
        loss = (drawn - pixels).abs().mean(dim=(1, 2, 3))
        for lpips in self._lpips:
            loss = loss + self.perceptual * lpips.to(drawn)(drawn, pixels).flatten()
        if self.adversarial and self.training:
            if self.step >= self.start:
                loss = loss + self._game(drawn, pixels)
            self.step += 1
        return loss

    def _game(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """Both players' hinge losses, for one backward and one optimiser.

        Each term sees the other player's part as a constant. The generator's reads the discriminator with
        detached weights, so its gradient reaches the drawn pixels alone; the discriminator's reads detached
        pixels. Their sum has for each player exactly the gradient of its own loss, as two optimisers taking
        turns would, but both move at once. Reversing the gradient of a single term would not do: where the
        discriminator is sure its hinge loss is flat, and the generator would learn nothing just there.
        """
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        generator = -functional_call(self.discriminator, fixed, drawn).mean(dim=(1, 2, 3))
        real, fake = self.discriminator(pixels), self.discriminator(drawn.detach())  # (B, 1, h, w)
        hinge = (functional.relu(1 - real) + functional.relu(1 + fake)).mean(dim=(1, 2, 3)) / 2
        return self.adversarial * generator + hinge


def _patch_gan(channels: int, layers: int) -> nn.Module:
    """Convolutions that judge overlapping patches, (B, 3, H, W) -> (B, 1, h, w).

    Norms are over one sample, where PatchGAN's are over the batch: a row depends on that row only.
    """
    blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    width = channels
    for layer in range(1, layers + 1):
        wider, stride = channels * min(2**layer, 8), 2 if layer < layers else 1
        blocks += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False)]
        blocks += [nn.GroupNorm(1, wider), nn.LeakyReLU(0.2)]
        width = wider
    return nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))


def _lpips(backbone: str) -> Any:
    """LPIPS with its pretrained backbone.

    Raises:
        ValueError: the backbone's weights are neither on this machine nor within reach.
    """
    import lpips

    try:
        return lpips.LPIPS(net=backbone, verbose=False).requires_grad_(False)
    except OSError as error:  # URLError is one
        raise ValueError(
            f"perceptual: cannot load torchvision's weights of {backbone} ({error}); put the file that "
            f"torchvision names into {torch.hub.get_dir()}/checkpoints, or set perceptual to 0"
        ) from error
