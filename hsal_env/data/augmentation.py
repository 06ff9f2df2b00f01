"""Photographs in ever new variations, so that a few of them teach as many would.

A variation turns, stretches, shifts and bends the image, and changes its sharpness, colours, light and noise. It is a pure
function of (images, variation, seed, index), as a composed canvas is. What is in the image stays in it, up to its corners. So its
labels stay true although nobody knows where its objects are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from hsal_env.data.canvases import CanvasBatch, CanvasSource
from hsal_env.data.draws import source_of
from hsal_env.errors import DataError

Augment = Literal["none", "upright", "mirrored", "turned", "beside"]

_CANDIDATES = 24  # to be laid over an image: the one that covers least of it is taken
_STREAM = 300  # a second key beside the seed, so that variations have random numbers of their own


@dataclass(frozen=True)
class Variation:
    """How far images are varied. Every number is drawn uniformly, zoom and contrast on a logarithmic scale.

    Attributes:
        zoom: size of the content over its size in the image. Above 1, what is at the edge is lost. It is less where a turned
            image would not fit: what lies in the ellipse that touches the four sides stays in the image.
        stretch: largest logarithm of width over height, where the image has 0.
        shift: largest way of the content along each axis, as a share of the image, beside the room that ``zoom`` makes.
        turn_deg: largest angle; 180 for any.
        shear: largest way of a row against the one as far above as the image is wide, as a share of that way.
        bend: largest standard deviation of the smooth random displacements, as a share of the image.
        still: share of the images that keep their form; all above is nothing to them.
        mirrored: whether half of the images are mirrored.
        blur_px: largest standard deviation of the Gaussian that half of the images are blurred by.
        saturation: least and greatest factor.
        contrast: least and greatest factor.
        light: largest change of brightness, where white is 1.
        hue_deg: largest angle by which the colours of half of the images are turned about grey.
        negative: share of the images that are shown as their negative.
        noise: largest standard deviation of the noise.
        covered: number of rectangles of one colour each that cover parts of the image, and their largest side as a share of the
            image's. Small ones leave an object recognisable, and teach to read it by all its parts (DeVries and Taylor, 2017).
        beside: share of the images that stand beside another one, each squeezed to a width in proportion to its objects. Their
            labels are those of both. Images without objects, and pairs with too many, stay single.
        overlaid: share of the images that another one is laid over, and of these that one more is laid over, and so on, as
            long as the objects are not too many. Their labels are those of all
            (:func:`hsal_env.data.variation.overlaid`).
    """

    zoom: tuple[float, float] = (0.75, 1.0)
    stretch: float = 0.12
    shift: float = 0.0
    turn_deg: float = 8.0
    shear: float = 0.1
    bend: float = 0.01
    still: float = 0.0
    mirrored: bool = False
    blur_px: float = 0.8
    saturation: tuple[float, float] = (0.3, 1.6)
    contrast: tuple[float, float] = (0.7, 1.5)
    light: float = 0.15
    hue_deg: float = 0.0
    negative: float = 0.0
    noise: float = 0.03
    covered: tuple[int, float] = (0, 0.0)
    beside: float = 0.0
    overlaid: float = 0.0


VARIATIONS: dict[Augment, Variation] = {
    "upright": Variation(),
    "mirrored": Variation(mirrored=True, turn_deg=15.0),
    "turned": Variation(mirrored=True, turn_deg=180.0),
}
"""Of images of your own."""

NUMBERS = Variation(
    zoom=(0.85, 1.12),
    shift=0.05,
    shear=0.15,
    bend=0.03,
    blur_px=1.2,
    saturation=(0.1, 1.6),
    hue_deg=180.0,
    negative=0.3,
    noise=0.04,
    covered=(3, 0.18),
)
"""Of numbers that a margin surrounds and whose colours say nothing, as in SVHN."""

NUMBERS_BESIDE = replace(NUMBERS, beside=0.25)
"""More digits than SVHN has in an image: features learn from them to tell neighbours apart, but an agent to expect too many."""


DIGITS = Variation(zoom=(0.87, 1.15), stretch=0.25, turn_deg=15.0, shear=0.25, bend=0.04, still=0.25)
"""Of the digits that canvases are composed of, each by itself and in its form alone."""


class FiniteSource(CanvasSource, Protocol):
    """A fixed number of canvases."""

    def __len__(self) -> int: ...


class Varied:
    """An endless, random-access supply of variations of a fixed number of images.

    Canvas i shows image i mod N of a round, and each round has the images in a new order.

    Args:
        images: the N images.
        variation: how far they are varied; None: not at all, only the order changes.
        seed: picks orders and variations.
    """

    def __init__(self, images: FiniteSource, variation: Variation | None, seed: int = 0) -> None:
        self._images, self.variation, self._seed = images, variation, [seed, _STREAM]
        self._key = np.random.SeedSequence(self._seed).generate_state(2, np.uint64)

    @property
    def source(self) -> str:
        """That of the images."""
        return self._images.source

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """That of the images, the variation, the key, and the code that varies."""
        from hsal_env.data.variation import varied  # torch: not before --help

        return (*self._images.content, repr(self.variation), self._key, *source_of(Varied, varied))

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """The canvases of the given non-negative indices.

        Raises:
            DataError: an index is negative.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and indices.min() < 0:
            raise DataError(f"Expected canvas indices of at least 0; got {indices.min()}.")
        rounds, places = np.divmod(indices, len(self._images))
        orders = {r: np.random.default_rng([*self._seed, r]).permutation(len(self._images)) for r in {*rounds.tolist()}}
        shown = [orders[r][place] for r, place in zip(rounds.tolist(), places, strict=True)]
        batch = self._images.compose(shown)
        if self.variation is None:
            return batch
        from hsal_env.data.variation import beside, overlaid, varied

        made = CanvasBatch(*map(np.copy, batch))
        for lane, index in enumerate(indices.tolist()):  # each alone, so that a batch rounds nothing otherwise
            random = np.random.Generator(np.random.Philox(key=self._key, counter=[0, index, 0, 0]))
            if self.variation.beside and random.random() < self.variation.beside:
                other = self._images.compose([int(random.integers(len(self._images)))])
                for whole, part in zip(made, beside(batch, lane, other), strict=True):
                    whole[lane] = part
            while self.variation.overlaid and random.random() < self.variation.overlaid:
                drawn = random.integers(len(self._images), size=_CANDIDATES)
                others = self._images.compose(drawn[drawn != shown[lane]])
                joined = overlaid(made, lane, others)
                if joined is None:
                    break
                for whole, part in zip(made, joined, strict=True):
                    whole[lane] = part
            made.images[lane], made.boxes[lane] = varied(made.images[lane], made.boxes[lane], self.variation, random)
        return made
