"""Everything around the model's parts: data, composition, training, evaluation, graph, records."""

from lab.torchvision_ops import install as _prepare_torchvision

_prepare_torchvision()
