"""The images that a stage of the unified model will see, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.evaluation.losses import held_out
from lab.models.caching import FEATURES

if TYPE_CHECKING:
    from lab.graph.context import Context
    from lab.samples.mixture import Mixture
    from lab.samples.segments import Picture

SHOWN = 1000  # images of which a visual head learns at the start what it is to draw
_CHANGES = "change from one look to the next (augmentation), so their features cannot be cached"


class Images(Sequence["Picture"]):
    """Distinct images in the order in which they are first seen; each is made when asked for, and not kept.

    Attributes:
        keys: `Picture.key` of each.
        uses: how often any is seen.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.uses = 0
        self._sources: list[Callable[[int], Sequence[Picture]]] = []
        self._where: dict[str, tuple[int, int, int]] = {}  # key -> source, position, number within it

    def add(self, source: Callable[[int], Sequence[Picture]], length: int) -> None:
        """Adds the images of positions 0 to `length` of a source; equal positions have to give equal ones."""
        for position in range(length):
            for number, picture in enumerate(source(position)):
                self._where.setdefault(picture.key, (len(self._sources), position, number))
                self.uses += 1
        self._sources.append(source)
        self.keys = list(self._where)

    def add_mixture(self, samples: Mixture) -> None:
        """Adds all images of a mix, those that are read and those that are drawn."""

        def at(position: int) -> list[Picture]:
            segments = samples[position].segments
            return [segment.picture for segment in segments if segment.picture is not None]

        self.add(at, len(samples))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: Any) -> Any:
        """An image, or a list of them for a slice, made anew.

        Raises:
            LabError: it is another one than before.
        """
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        key = self.keys[row]
        source, position, number = self._where[key]
        found = self._sources[source](position)
        if number >= len(found) or found[number].key != key:
            raise LabError(
                f"image {key}: images {_CHANGES}; leave the stage that caches them out of the recipe"
            )
        return found[number]

    def __iter__(self) -> Iterator[Picture]:
        return (self[row] for row in range(len(self)))

    @property
    def counts(self) -> Mapping[str, float]:
        """As metrics."""
        return {"cache/images": float(len(self)), "cache/uses": float(self.uses)}


def images_for(context: Context) -> Images:
    """All that the stage after this one will see: what its head begins with, training, validation."""
    reader, images = FEATURES[context.stage], Images()
    if context.reads.get("visual_head"):
        tasks = context.tasks("train")
        images.add(lambda row: [tasks.picture(row)], min(SHOWN, len(tasks)))
    training = context.mixture(reader)
    images.add_mixture(training)
    if samples := held_out(context.sources("validation"), training.shares(), context.params.seed):
        images.add_mixture(samples)
    return images


def check_constant(images: Images, encode: Callable[[Any], Any], count: int) -> None:
    """Looks at the first images twice.

    Raises:
        LabError: their pixels or features change.
    """
    import torch

    from lab.samples.batch import images_of

    one, other = (images_of(images[:count]) for _ in range(2))
    if not torch.equal(one, other):
        raise LabError(f"pixels {_CHANGES}; leave the stage that caches them out of the recipe")
    if not torch.equal(encode(one), encode(one)):
        raise LabError("the encoder gives other features every time, so they cannot be cached")
