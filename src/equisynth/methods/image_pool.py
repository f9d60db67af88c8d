"""The pool of past translations that CycleGAN's discriminators see beside new ones (Shrivastava et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import torch
from torch import Tensor


class ImagePool:
    """Up to ``size`` images; none at all with size 0, where new images simply pass.

    Attributes:
        images: (C, H, W) each, in the order of their places.
    """

    def __init__(self, size: int, images: Iterable[Tensor] = ()) -> None:
        self.size, self.images = size, list(images)

    def exchange(self, images: Tensor, draws: Random) -> Tensor:
        """For each new image of (B, C, H, W), in order, itself or, once the pool is full, perhaps an older one.

        While there is room, a new image is kept and returned. Then in half of the cases it takes the place of a stored
        one, which is returned.
        """
        if not self.size:
            return images
        return torch.stack([self._exchanged(image, draws) for image in images.detach()])

    def _exchanged(self, image: Tensor, draws: Random) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if draws.random() <= 0.5:
            return image
        place = draws.randint(0, self.size - 1)
        stored, self.images[place] = self.images[place], image.clone()
        return stored.to(image.device)
