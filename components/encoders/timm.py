"""Any image backbone of timm by name, new or pretrained: ViT, ConvNeXt, ResNet and a thousand others.

Paper: none
"""

from __future__ import annotations

from difflib import get_close_matches
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_pre_hook

from components.layers.resize import resize_pixels

__all__ = ["Timm"]


class Timm(nn.Module):
    """Features of a backbone's last or any other layer as tokens in raster order.

    Pixels are normalised with the model's own mean and deviation. Position embeddings are built for the
    resolution; pretrained ones are interpolated by timm. Modules that the chosen features do not depend on
    (classifier, blocks above the layer) are not kept. Register tokens are dropped. In training mode, batch
    norms of convolutional backbones mix the rows of a batch.

    Args:
        image_size: side of the incoming image in pixels.
        model: name in timm, with the tag of its weights if need be (`vit_base_patch16_siglip_224.webli`), or
            `hf-hub:owner/name` or `local-dir:folder` of a model that timm has saved with its config.json.
        pretrained: load the weights of that name or folder.
        checkpoint: file of weights to load instead (safetensors or torch), every one of the model's; where
            its classifier differs, `settings` says so: {num_classes: 10}, 0 for none.
        layer: which of the model's intermediate features: blocks of a ViT, stages of other models, 0 the
            first, -1 the last, without final norm; None for the features that the classifier would see.
        keep_class: put the class token first, where there is one; tokens then have no grid.
        resolution: side at which the backbone sees the image; None for `image_size`.
        settings: arguments of the model in timm, such as {patch_size: 8, depth: 4, drop_path_rate: 0.1}.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    mean: Tensor
    deviation: Tensor
    grid: tuple[int, int] | None

    def __init__(
        self,
        image_size: int,
        *,
        model: str = "vit_tiny_patch16_224",
        pretrained: bool = False,
        checkpoint: str | None = None,
        layer: int | None = None,
        keep_class: bool = False,
        resolution: int | None = None,
        settings: dict | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self._resolution = image_size if resolution is None else resolution
        self._layer, self._keep_class = layer, keep_class
        self.model = _create(model, pretrained, checkpoint, self._resolution, settings or {})
        classes = getattr(self.model, "cls_token", None) is not None
        self._num_prefix_tokens: int = getattr(self.model, "num_prefix_tokens", int(classes))
        if keep_class and not classes:
            raise ValueError(f"keep_class: '{model}' has no class token")
        if layer is not None:
            if not hasattr(self.model, "forward_intermediates"):
                raise ValueError(f"layer: '{model}' gives its last features only; leave layer out")
            count = len(self.model.feature_info)
            if not -count <= layer < count:
                raise ValueError(
                    f"layer {layer} is outside the {count} of '{model}': 0 to {count - 1}, or -1 to -{count}"
                )
        mean, deviation = self.model.pretrained_cfg["mean"], self.model.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

        shape, unused = self._outline(model)
        _drop(self, unused)
        self.num_tokens, self.dim = shape[1], shape[2]
        rows = isqrt(self.num_tokens - keep_class)
        if rows < 1 or rows**2 != self.num_tokens - keep_class:
            raise ValueError(
                f"'{model}' gives {self.num_tokens} tokens, {'a class token and ' if keep_class else ''}"
                f"no square grid; choose a layer"
            )
        self.grid = None if keep_class else (rows, rows)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        pixels = (resize_pixels(pixels, self._resolution) - self.mean) / self.deviation
        if self._layer is None:
            features = self.model.forward_features(pixels)
            if features.ndim == 4:  # convolutions, or Swin with channels last
                last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
                return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)
            prefix, patches = features.tensor_split([self._num_prefix_tokens], dim=1)
        else:
            extra = {"return_prefix_tokens": True} if self._keep_class else {}
            (found,) = self.model.forward_intermediates(
                pixels, indices=[self._layer], stop_early=True, intermediates_only=True, **extra
            )
            features, prefix = found if self._keep_class else (found, None)
            patches = features.flatten(2).transpose(1, 2)  # (B, D_v, rows, columns) -> (B, N, D_v)
        return torch.cat([prefix[:, :1], patches], dim=1) if self._keep_class else patches

    def _outline(self, model: str) -> tuple[torch.Size, set[str]]:
        """Run without values: the shape of the tokens, and the names of parameters they have no part of."""
        parameters = {
            name: torch.empty_like(value, device="meta").requires_grad_()
            for name, value in self.named_parameters()
        }
        buffers = {name: torch.empty_like(value, device="meta") for name, value in self.named_buffers()}
        # two rows: batch norms refuse a single value
        pixels = torch.empty(2, 3, self._resolution, self._resolution, device="meta")
        ran: set[nn.Module] = set()
        handle = register_module_forward_pre_hook(lambda module, _: ran.add(module))
        try:
            with torch.enable_grad():
                tokens = functional_call(self, parameters | buffers, (pixels,))
                found = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
        except Exception as error:  # whatever the model's own code raises
            raise ValueError(
                f"'{model}' does not run at {self._resolution} pixels with these settings ({_line(error)})"
            ) from error
        finally:
            handle.remove()
        unread = {name for name, gradient in zip(parameters, found, strict=True) if gradient is None}
        # what runs must stay, though its result be thrown away
        kept = {name for name, module in self.named_modules() if module in ran}
        return tokens.shape, {name for name in unread if name.rpartition(".")[0] not in kept}


def _create(model: str, pretrained: bool, checkpoint: str | None, resolution: int, settings: dict) -> Any:
    """Build a model of timm for a resolution, with weights if asked for."""
    import timm

    name = model.split(".")[0]
    if ":" not in model and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(f"timm has no model '{name}'" + "".join(f" (did you mean '{n}'?)" for n in near))
    overlay: dict[str, Any] = {}
    if checkpoint is not None:
        file = Path(checkpoint).expanduser()
        if not file.is_file():
            raise ValueError(f"checkpoint: no file '{checkpoint}'")
        overlay = {"file": str(file), "source": ""}
        if "num_classes" in settings:  # said to be the file's too, or timm would load what fits and no more
            overlay["num_classes"] = settings["num_classes"]
    try:
        with torch.device("meta"):
            outline = timm.create_model(model, **settings)
        # convolutions take any size, and no argument for it
        size = {"img_size": resolution} if outline.pretrained_cfg["fixed_input_size"] else {}
        return timm.create_model(
            model,
            # on torch's meta device there is nowhere to put weights
            pretrained=(pretrained or checkpoint is not None) and torch.get_default_device().type != "meta",
            pretrained_cfg_overlay=overlay,
            **size,
            **settings,
        )
    except Exception as error:  # RuntimeError, TypeError, errors of huggingface_hub and of safetensors
        raise ValueError(f"timm cannot make '{model}' with these settings ({_line(error)})") from error


def _drop(module: nn.Module, unused: set[str], prefix: str = "") -> None:
    """Put an identity in the place of every module all of whose parameters are unused.

    Lists of modules stay, with identities in them: models iterate over them.
    """
    for name, child in module.named_children():
        owned = {f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()}
        if owned and owned <= unused and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            setattr(module, name, nn.Identity())
        else:
            _drop(child, unused, f"{prefix}{name}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
