"""Draw scenes of glyphs: ``render`` makes an image of a scene that ``grammar.sample`` drew."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from otclib.data.grammar import GROUNDS, OBJECTS, Scene, Thing

GLYPH = 96  # side of the master drawings, pixels


@functools.cache
def _masters(name: str) -> tuple[Image.Image, Image.Image]:
    """Return the glyph and its backing (the silhouette, filled and slightly grown), each a GLYPH x GLYPH mask."""
    import matplotlib

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    glyph, font = OBJECTS[name][0], ImageFont.truetype(path, 200)
    left, top, right, bottom = font.getbbox(glyph)
    side = max(right - left, bottom - top)
    big = Image.new("L", (int(side * 1.12),) * 2)
    offset = (big.width - (right - left)) / 2 - left, (big.height - (bottom - top)) / 2 - top
    ImageDraw.Draw(big).text(offset, glyph, font=font, fill=255)
    ink = big.resize((GLYPH, GLYPH), Image.Resampling.LANCZOS)
    grown = ink.filter(ImageFilter.MaxFilter(9))
    outside = grown.point(lambda v: 255 * (v > 90))
    ImageDraw.floodfill(outside, (0, 0), 128)
    backing = outside.point(lambda v: 255 * (v != 128)).filter(ImageFilter.GaussianBlur(1.2))
    return ink, backing


@functools.cache
def _textures(size: int) -> dict[str, np.ndarray]:
    """Return the ground textures at twice the image side: name -> uint8 [4 variants, 2*size, 2*size, 3]."""
    rng = np.random.default_rng(7)
    n = 256
    yy, xx = np.mgrid[0:n, 0:n] / n
    cell = n / 8  # pixels per eighth of the texture

    def noise(sy: int, sx: int | None = None) -> np.ndarray:
        small = Image.fromarray(rng.normal(0, 1, (sy, sx or sy)).astype(np.float32))
        big = np.asarray(small.resize((n, n), Image.Resampling.BICUBIC))
        return big / big.std()

    def pattern(name: str) -> np.ndarray:
        """Return the relative brightness of a texture, mean about 0, [n, n]."""
        if name == "sand":
            return 0.05 * noise(128) + 0.04 * noise(12)
        if name == "grass":
            return 0.11 * noise(24, 128) + 0.05 * noise(8)
        if name == "water":
            return 0.07 * np.sin(2 * np.pi * (14 * yy + 0.25 * noise(5))) + 0.06 * noise(48, 12)
        if name == "snow":
            return 0.03 * noise(10) + 0.02 * noise(96)
        if name == "brick":
            row = (yy * n // (cell / 2)).astype(int)
            line = ((yy * n) % (cell / 2) < 2.5) | ((xx * n + (row % 2) * cell / 2) % cell < 2.5)
            shade = rng.normal(0, 0.06, (64, 64))[row, ((xx * n + (row % 2) * cell / 2) // cell).astype(int)]
            return np.where(line, 0.22, shade) + 0.03 * noise(96)
        if name == "wood":
            plank = (xx * n // (cell * 1.5)).astype(int)
            edge = (xx * n) % (cell * 1.5) < 2
            return np.where(edge, -0.25, rng.normal(0, 0.06, 64)[plank]) + 0.06 * noise(6, 96)
        if name == "night":
            stars = noise(128) > 3.0
            return 0.10 * noise(6) + 2.5 * stars
        if name == "tiles":
            line = ((yy * n) % cell < 2.5) | ((xx * n) % cell < 2.5)
            shade = rng.normal(0, 0.05, (64, 64))[(yy * n // cell).astype(int), (xx * n // cell).astype(int)]
            return np.where(line, -0.18, shade)
        if name == "stone":
            return 0.08 * noise(40) + 0.07 * noise(14) + 0.04 * noise(128)
        if name == "paper":
            return np.where((yy * n) % (cell * 0.7) < 1.8, -0.12, 0.0) + 0.015 * noise(64)
        if name == "dusk":
            return 0.10 * np.sin(2 * np.pi * (3 * yy + 0.15 * noise(4))) + 0.03 * noise(6, 3)
        weave = np.sin(2 * np.pi * 40 * xx) * np.sin(2 * np.pi * 40 * yy)  # cloth
        return 0.09 * weave + 0.05 * np.sin(2 * np.pi * 8 * (xx + yy))

    out = {}
    for name, (_, rgb, _) in GROUNDS.items():
        variants = []
        for _ in range(4):
            image = np.clip((1 + pattern(name))[..., None] * np.array(rgb, float), 0, 255).astype(np.uint8)
            variants.append(np.asarray(Image.fromarray(image).resize((2 * size, 2 * size), Image.Resampling.LANCZOS)))
        out[name] = np.stack(variants)
    return out


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Return the image of a scene, uint8 [size, size, 3]."""
    canvas = ground(scene, size)
    for thing in scene.things:
        level = finest(_levels(thing.name), thing.diameter * size)
        window, (ink, backing) = transformed(thing, size, level)
        rgb = np.array(thing.rgb, np.float32)
        paper = 0.12 * rgb + 0.88 * 255
        patch = canvas[window]
        patch += 0.95 * backing[..., None] * (paper - patch)
        patch += ink[..., None] * (rgb - patch)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def ground(scene: Scene, size: int) -> np.ndarray:
    """Return the textured ground of a scene, float32 [size, size, 3] from 0 to 255."""
    variant, ox, oy, flips = scene.texture
    whole = _textures(size)[scene.ground][variant]
    ox, oy = ox * size // 256, oy * size // 256
    canvas = whole[oy : oy + size, ox : ox + size].astype(np.float32)
    return canvas[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)] * np.asarray(scene.tint, np.float32)


def transformed(
    thing: Thing, size: int, level: tuple[Image.Image, ...], mirrored: bool = False
) -> tuple[tuple[slice, slice], list[np.ndarray]]:
    """Return where a thing lies in the image, and its masters turned and scaled to it, float32 from 0 to 1.

    The masters are squares of one size; of each the thing's diameter is the whole side.
    """
    side = level[0].width
    scale = side / (thing.diameter * size)  # master pixels per image pixel
    c, s = np.cos(np.radians(thing.angle)) * scale, np.sin(np.radians(thing.angle)) * scale
    x, y, reach = thing.x * size, thing.y * size, thing.diameter * size * 0.72
    lo_x, hi_x = max(0, int(x - reach)), min(size, int(x + reach) + 2)
    lo_y, hi_y = max(0, int(y - reach)), min(size, int(y + reach) + 2)
    dx, dy = lo_x - x, lo_y - y
    affine = (c, s, side / 2 + c * dx + s * dy, -s, c, side / 2 - s * dx + c * dy)
    if mirrored:
        affine = (-affine[0], -affine[1], side - affine[2], *affine[3:])
    shape = hi_x - lo_x, hi_y - lo_y
    return (slice(lo_y, hi_y), slice(lo_x, hi_x)), [
        np.asarray(m.transform(shape, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR), np.float32) / 255
        for m in level
    ]


@functools.cache
def _levels(name: str) -> tuple[tuple[Image.Image, ...], ...]:
    sides = (96, 64, 48, 32, 24, 16)
    return tuple(tuple(m.resize((s, s), Image.Resampling.LANCZOS) for m in _masters(name)) for s in sides)


def finest(levels: Sequence[tuple[Image.Image, ...]], pixels: float) -> tuple[Image.Image, ...]:
    """Return the smallest of some masters that is as fine as a drawing of so many pixels: then nothing aliases."""
    for level in reversed(levels):
        if level[0].width >= pixels * 0.999:
            return level
    return levels[0]
