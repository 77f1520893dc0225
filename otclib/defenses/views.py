"""Random views of images: each image of a batch has its own crop, flip and colours.

A view is one affine map of the plane and one of the colours, so a batch takes three operations. The crop with its flip
is one look-up on a grid. Brightness, contrast, saturation and hue are one 3 x 3 matrix and an offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

LUMA = (0.299, 0.587, 0.114)
YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


@dataclass(frozen=True)
class Views:
    """``views(images, size)`` returns one view of each uint8 image [B, 3, H, W]: float [B, 3, size, size] in [0, 1].

    Parameters
    ----------
    scale, ratio : ranges of the crop's share of the image's area, and of its width over its height.
    brightness, contrast, saturation : each factor lies within this of 1. Contrast is about the image's mean grey.
    hue : the largest turn in either direction, as a share of the circle, about the axis of greys (a rotation in YIQ).
    jitter, grey : the share of views whose colours are changed, and the share that becomes grey.
    blur : the range of a Gaussian's sigma, in pixels of the view, or None.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grey: float = 0.0
    blur: tuple[float, float] | None = None

    def __call__(self, images: Tensor, size: int) -> Tensor:
        x = self.crops(images, size)
        matrix, offset = self.colours(x)
        x = torch.baddbmm(offset, matrix, x.flatten(2)).clamp_(0, 1).view(x.shape)
        return x if self.blur is None else blurred(x, _between(*self.blur, len(x)).to(x.device))

    def crops(self, images: Tensor, size: int) -> Tensor:
        """Return a random part of every image, perhaps mirrored, drawn at ``size`` by bilinear interpolation."""
        n, high, wide = len(images), *images.shape[-2:]
        area = _between(*self.scale, n) * high * wide
        ratio = _between(math.log(self.ratio[0]), math.log(self.ratio[1]), n).exp()
        w = (area * ratio).sqrt().clamp(max=wide) / wide  # width and height of the part, as shares of the image's
        h = (area / ratio).sqrt().clamp(max=high) / high
        mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
        steps = (torch.arange(size) + 0.5) * 2 / size - 1
        across = (w * mirror)[:, None] * steps + ((1 - w) * _between(-1, 1, n))[:, None]
        down = h[:, None] * steps + ((1 - h) * _between(-1, 1, n))[:, None]
        grid = torch.stack([across[:, None].expand(n, size, size), down[:, :, None].expand(n, size, size)], -1)
        unit = images.float().div_(255)
        return F.grid_sample(unit, grid.to(images.device), padding_mode="border", align_corners=False)

    def colours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of the colours of float images [B, 3, H, W]: a matrix [B, 3, 3] and an offset [B, 3, 1]."""
        n = len(x)
        changed = torch.rand(n) < self.jitter
        b, c, s = (
            torch.where(changed, _between(max(0.0, 1 - by), 1 + by, n), 1.0)
            for by in (self.brightness, self.contrast, self.saturation)
        )
        s = torch.where(torch.rand(n) < self.grey, 0.0, s)
        turn = torch.where(changed, 2 * math.pi * _between(-self.hue, self.hue, n), 0.0)
        chroma = torch.zeros(n, 3, 3)  # in YIQ: grey stays, and the rest is turned by the hue and scaled
        chroma[:, 0, 0] = 1
        chroma[:, 1, 1] = chroma[:, 2, 2] = s * turn.cos()
        chroma[:, 2, 1] = s * turn.sin()
        chroma[:, 1, 2] = -chroma[:, 2, 1]
        matrix = (b * c)[:, None, None] * (torch.linalg.inv(YIQ) @ chroma @ YIQ)
        mean = x.mean((2, 3)) @ x.new_tensor(LUMA)
        offset = (b * (1 - c)).to(x.device) * mean
        return matrix.to(x.device), offset[:, None, None].expand(n, 3, 1)


def _between(low: float, high: float, n: int) -> Tensor:
    return low + (high - low) * torch.rand(n)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images [B, 3, H, W] by a Gaussian of each image's own ``sigma`` [B] in pixels, cut off at three sigmas."""
    reach = max(1, math.ceil(3 * float(sigma.max())))
    at = torch.arange(-reach, reach + 1, device=x.device)
    weight = torch.exp(-0.5 * (at / sigma[:, None].clamp(min=1e-3)) ** 2)
    weight = (weight / weight.sum(1, keepdim=True))[:, :, None, None, None]
    for axis, pad in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded, length = F.pad(x, pad, mode="replicate"), x.shape[axis]
        x = reduce(add, (weight[:, k] * padded.narrow(axis, k, length) for k in range(2 * reach + 1)))
    return x


def auto_augmented() -> Callable[[Tensor, int], Tensor]:
    """Return CleanCLIP's views: torchvision's AutoAugment (its default, the ImageNet policy), drawn for each image."""
    policy = v2.AutoAugment()

    def view(images: Tensor, size: int) -> Tensor:
        seen = torch.stack([policy(image) for image in images])
        return tv.resize(seen, [size, size], antialias=True).float().div_(255)

    return view


WEAK = Views()
STRONG = Views(scale=(0.6, 1.0), ratio=(0.8, 1.25), brightness=0.3, contrast=0.3, saturation=0.5, hue=0.5)


def published_view(size: int, legacy: bool = False) -> Callable[[Tensor, int], Tensor]:
    """Return the views that RoCLIP and SafeCLIP train on (utils/augment_image.py in both published codes).

    These are flips, crops, colour jitter in 80 %, grey in 20 %, and always a blur (21 px wide at 224, sigma up to 2 px
    there). Only the crops differ from the published ones: they show 60 to 100 % of the image, as our own strong views.
    With ``legacy`` they show 8 to 100 %, torchvision's default, which a glyph of an embedded scene seldom survives.
    """
    part = size / 224
    return Views(
        scale=(0.08 if legacy else 0.6, 1.0),
        ratio=(3 / 4, 4 / 3),
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        hue=0.1,
        jitter=0.8,
        grey=0.2,
        blur=(0.1 * part, 2.0 * part),
    )
