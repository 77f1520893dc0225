"""Random views of images: each image of a batch has its own crop, flip and colours.

A view is one affine map of the plane and one of the colours, so a batch takes three operations. The crop with its flip
is one look-up on a grid. Brightness, contrast, saturation and hue are one 3 x 3 matrix and an offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

LUMA = (0.299, 0.587, 0.114)
YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


@dataclass
class Draws:
    """The random numbers of n views, each [n] and uniform in its option's range; ``draws[rows]`` are those of some."""

    area: Tensor
    ratio: Tensor  # the logarithm of the crop's width over its height
    mirror: Tensor  # -1: mirrored, 1: not
    across: Tensor  # place of the crop: from -1, left, to 1, right
    down: Tensor
    changed: Tensor  # bool: the colours are changed
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    grey: Tensor  # bool
    turn: Tensor  # of the hue, as a share of the circle
    sigma: Tensor | None  # of the blur, as a share of the view's side

    def __getitem__(self, rows: slice) -> Draws:
        some: dict[str, Any] = {name: None if value is None else value[rows] for name, value in vars(self).items()}
        return Draws(**some)


@dataclass(frozen=True)
class Views:
    """``views(images, size)`` returns one view of each uint8 image [B, 3, H, W]: float [B, 3, size, size] in [0, 1].

    ``draw(n)`` draws the random numbers of n views. Whoever sees only a part of a batch draws for all of it, and gives
    its own part of the draws to the call.

    Parameters
    ----------
    scale, ratio : ranges of the crop's share of the image's area, and of its width over its height.
    brightness, contrast, saturation : each factor lies within this of 1. Contrast is about the image's mean grey.
    hue : the largest turn in either direction, as a share of the circle, about the axis of greys (a rotation in YIQ).
    jitter, grey : the share of views whose colours are changed, and the share that becomes grey.
    blur : the range of a Gaussian's sigma, as a share of the view's side, or None.
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

    def draw(self, n: int) -> Draws:
        """Return the random numbers of n views, from torch's own generator."""
        return Draws(
            area=_between(*self.scale, n),
            ratio=_between(math.log(self.ratio[0]), math.log(self.ratio[1]), n),
            mirror=torch.where(torch.rand(n) < 0.5, -1.0, 1.0),
            across=_between(-1, 1, n),
            down=_between(-1, 1, n),
            changed=torch.rand(n) < self.jitter,
            brightness=_between(max(0.0, 1 - self.brightness), 1 + self.brightness, n),
            contrast=_between(max(0.0, 1 - self.contrast), 1 + self.contrast, n),
            saturation=_between(max(0.0, 1 - self.saturation), 1 + self.saturation, n),
            grey=torch.rand(n) < self.grey,
            turn=_between(-self.hue, self.hue, n),
            sigma=None if self.blur is None else _between(*self.blur, n),
        )

    def __call__(self, images: Tensor, size: int, draws: Draws | None = None) -> Tensor:
        draws = self.draw(len(images)) if draws is None else draws
        x = self.crops(images, size, draws)
        matrix, offset = self.colours(x, draws)
        x = torch.baddbmm(offset, matrix, x.flatten(2)).clamp_(0, 1).view(x.shape)
        return x if draws.sigma is None else blurred(x, size * draws.sigma.to(x.device))

    def crops(self, images: Tensor, size: int, draws: Draws) -> Tensor:
        """Return a part of every image, perhaps mirrored, at ``size`` by bilinear interpolation."""
        n, high, wide = len(images), *images.shape[-2:]
        area, ratio = draws.area * high * wide, draws.ratio.exp()
        w = (area * ratio).sqrt().clamp(max=wide) / wide  # width and height of the part, as shares of the image's
        h = (area / ratio).sqrt().clamp(max=high) / high
        steps = (torch.arange(size) + 0.5) * 2 / size - 1
        across = (w * draws.mirror)[:, None] * steps + ((1 - w) * draws.across)[:, None]
        down = h[:, None] * steps + ((1 - h) * draws.down)[:, None]
        grid = torch.stack([across[:, None].expand(n, size, size), down[:, :, None].expand(n, size, size)], -1)
        unit = images.float().div_(255)
        return F.grid_sample(unit, grid.to(images.device), padding_mode="border", align_corners=False)

    def colours(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the map of the colours of float images [B, 3, H, W]: a matrix [B, 3, 3] and an offset [B, 3, 1]."""
        n = len(x)
        b, c, s = (
            torch.where(draws.changed, factor, 1.0) for factor in (draws.brightness, draws.contrast, draws.saturation)
        )
        s = torch.where(draws.grey, 0.0, s)
        turn = torch.where(draws.changed, 2 * math.pi * draws.turn, 0.0)
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


class AutoAugmented:
    """CleanCLIP's views: torchvision's AutoAugment (its default, the ImageNet policy), drawn for each image."""

    def draw(self, n: int) -> Tensor:
        """Return a seed for each of n views [n], from torch's own generator."""
        return torch.randint(2**31, (n,))

    def __call__(self, images: Tensor, size: int, draws: Tensor | None = None) -> Tensor:
        draws, policy, seen = self.draw(len(images)) if draws is None else draws, v2.AutoAugment(), []
        for image, seed in zip(images, draws.tolist(), strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                seen.append(policy(image))
        return tv.resize(torch.stack(seen), [size, size], antialias=True).float().div_(255)


WEAK = Views()


def published_view(legacy: bool = False) -> Views:
    """Return the views that RoCLIP and SafeCLIP train on (utils/augment_image.py in both published codes).

    These are flips, crops, colour jitter in 80 %, grey in 20 %, and always a blur (21 px wide, sigma up to 2 px, of
    224). Only the crops differ from the published ones: they show 60 to 100 % of the image.
    With ``legacy`` they show 8 to 100 %, torchvision's default, which a glyph of an embedded scene seldom survives.
    """
    return Views(
        scale=(0.08 if legacy else 0.6, 1.0),
        ratio=(3 / 4, 4 / 3),
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        hue=0.1,
        jitter=0.8,
        grey=0.2,
        blur=(0.1 / 224, 2.0 / 224),
    )
