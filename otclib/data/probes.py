"""Labelled sets for linear probes. Each is a function: image size -> uint8 images [N, 3, size, size], labels [N]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

FONTS = ("DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def digits(size: int) -> tuple[Tensor, np.ndarray]:
    """Return scikit-learn's 1,797 scanned digits, real images that come with the library."""
    from sklearn.datasets import load_digits

    table = load_digits()
    images = torch.from_numpy(table.images / 16 * 255).to(torch.uint8)[:, None]
    return tv.resize(images, [size, size], antialias=True).expand(-1, 3, -1, -1).contiguous(), table.target


def letters(size: int, count: int = 2080, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Return drawn capital letters in six typefaces, dark on pale in any colours, turned by up to 20 degrees."""
    rng = np.random.default_rng([seed, 5])
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", 2 * size // 3) for name in FONTS]
    labels = np.array(list(LETTERS))[np.arange(count) % len(LETTERS)][rng.permutation(count)]
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for k, letter in enumerate(labels):
        ink, paper = rng.integers(0, 110, 3), rng.integers(170, 256, 3)
        glyph = Image.new("L", (size, size))
        shift = rng.uniform(-size / 10, size / 10, 2) + size / 2
        ImageDraw.Draw(glyph).text(tuple(shift), letter, 255, fonts[rng.integers(len(fonts))], anchor="mm")
        glyph = glyph.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BICUBIC)
        cover = np.asarray(glyph, dtype=np.float32) / 255
        front, back = (np.asarray(colour, np.float32)[:, None, None] for colour in (ink, paper))
        images[k] = np.rint(front * cover + back * (1 - cover))
    return torch.from_numpy(images), labels


PROBES: dict[str, Callable[[int], tuple[Tensor, np.ndarray]]] = {"digits": digits, "letters": letters}
