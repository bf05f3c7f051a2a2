"""Everything around the model's parts: data, composition, training, evaluation, the ablation graph and its records."""

from lab.torchvision_ops import install as _prepare_torchvision

_prepare_torchvision()
