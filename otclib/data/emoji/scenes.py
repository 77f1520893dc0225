"""Scenes of drawings: one to three things by many artists on textured grounds. The rich world.

They are composed and described as the scenes of glyphs are (``data.grammar``). A thing has hundreds of images and no
two are alike, because five artists drew it, and size, place, turn, mirroring and ground vary. Every content word has
its truth: the box and the mask of what it names. Captions name the colour of a drawing in which one prevails. In 25 % a
keyword that people gave to few other things stands for the name.

In ``test`` the drawings are those of an artist who is in no other split.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image, ImageChops, ImageFilter

from otclib.data import drawing, grammar, scenes
from otclib.data.cache import cache_dir, kept
from otclib.data.emoji import sources
from otclib.data.emoji.colours import prevailing
from otclib.data.emoji.drawings import drawings, picture
from otclib.data.emoji.sources import ARTISTS, HELD_OUT
from otclib.data.emoji.things import Named, ranked
from otclib.data.parallel import in_order, shown

VERSION = 1  # part of the cache's name: raise it when the same seed begins to give other scenes
CLASSES = 200
ROUGH, FINE = 64, 160  # side of the master drawings, pixels: of images up to 112 pixels, and of larger ones
OBJECT = {**scenes.OBJECT, "artist": Value("string"), "mask": Value("binary")}
FEATURES = Features({**scenes.FEATURES, "objects": [OBJECT]})


@dataclass
class Drawn(grammar.Thing):
    """An object of a scene that an artist drew."""

    code: str = ""
    artist: str = ""
    mirrored: bool = False


def load(
    split: str,
    *,
    size: int | None,
    seed: int,
    root: str | Path | None,
    image_size: int = 64,
    classes: int = CLASSES,
    held_out: str = HELD_OUT,
) -> Dataset:
    """Return the table of a split, from the cache or drawn. ``root`` has the packages, see ``sources.packages``.

    ``classes`` : number of things, those with short names first (``things.ranked``).
    ``held_out`` : the artist of ``test``.
    """
    scenes.check(split, image_size)
    known = len(ranked(root))
    if not 2 <= classes <= known:
        raise ValueError(f"classes must lie between 2 and {known}, the things that all artists drew, got {classes}")
    sources.check_artist(held_out)
    n = size or scenes.SPLITS[split][0]
    of = f"{split}-{n}-{classes}classes-without-{held_out}-{image_size}px-seed{seed}"
    rows = shown(generate(split, n, image_size, seed, classes, held_out, root), n, f"composing {split} scenes")
    folder = cache_dir() / f"emoji-scenes-v{VERSION}-{of}"
    return kept(folder, lambda: Dataset.from_list(list(rows), features=FEATURES))


def generate(
    split: str,
    n: int,
    size: int = 64,
    seed: int = 0,
    classes: int = CLASSES,
    held_out: str = HELD_OUT,
    root: str | Path | None = None,
    workers: int | None = None,
) -> Iterator[dict]:
    """Yield ``n`` rows of the split in order, drawn by ``workers`` processes (default: one per core)."""
    for artist in _artists(split, held_out):  # rendered before the workers share them
        for side in {ROUGH, _side(size)}:
            drawings(artist, side, root)
    world = split, seed, size, classes, held_out, root
    step = scenes.CHUNK
    yield from in_order(_rows, [(*world, a, min(a + step, n)) for a in range(0, n, step)], workers)


def sample(rng: np.random.Generator, things: tuple[Named, ...], artists: list[str], most: int) -> grammar.Scene:
    """Draw a scene of one to ``most`` of these things, each by one of these artists."""
    scene, count = grammar.empty(rng, most)
    for n in rng.choice(len(things), count, replace=False):
        thing, artist = things[n], artists[int(rng.integers(len(artists)))]
        size, diameter, x, y = grammar.place(rng, scene, count)
        angle, mirrored = float(rng.uniform(-15, 15)), bool(rng.random() < 0.5)
        about = thing.name, _colour(artist, thing.code), None, size, diameter, x, y, angle, thing.synonyms
        scene.things.append(Drawn(*about, thing.code, artist, mirrored))
    return scene


def render(scene: grammar.Scene, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the image of a scene, uint8 [size, size, 3], and where each object is visible, bool [size, size]."""
    canvas = drawing.ground(scene, size)
    masks: list[np.ndarray] = []
    for thing in scene.things:
        assert isinstance(thing, Drawn)
        level = drawing.finest(_levels(thing.artist, thing.code, _side(size)), thing.diameter * size)
        window, (sticker,) = drawing.transformed(thing, size, level, thing.mirrored)
        alpha = sticker[..., 3:]
        canvas[window] += 255 * sticker[..., :3] - alpha * canvas[window]  # the colours are multiplied by alpha already
        mask = np.zeros((size, size), bool)
        mask[window] = alpha[..., 0] > 0.5
        masks = [*(below & ~mask for below in masks), mask]
    return np.clip(canvas, 0, 255).astype(np.uint8), masks


def mask(thing: Mapping) -> np.ndarray:
    """Return where an object of a row is visible, bool [S, S]."""
    return np.asarray(Image.open(io.BytesIO(thing["mask"])))


def _rows(task: tuple) -> list[dict]:
    split, seed, size, classes, held_out, root, start, stop = task
    things, artists = ranked(root)[:classes], _artists(split, held_out)
    rows = []
    for k in range(start, stop):
        rng = np.random.default_rng([seed, list(scenes.SPLITS).index(split), k, 1])
        scene = sample(rng, things, artists, scenes.SPLITS[split][1])
        caption, words = grammar.describe(scene, rng)
        image, masks = render(scene, size)
        about = ("name", "colour", "size", "artist")
        objects = [
            {key: getattr(thing, key) for key in about} | {"box": _box(of) or thing.box, "mask": _bits(of)}
            for thing, of in zip(scene.things, masks)
        ]
        rows.append(
            {
                "id": f"{split}-{seed}-{k:06d}",
                "image": scenes.stored(image),
                "caption": caption,
                "label": scene.things[0].name if len(scene.things) == 1 else None,
                "objects": objects,
                "ground": scene.ground,
                "words": words,
            }
        )
    return rows


def _box(mask: np.ndarray) -> list[float] | None:
    """Return left, top, right and bottom of what is visible, in [0, 1]; None if nothing is."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(down):
        return None
    return [across[0] / len(mask), down[0] / len(mask), (across[-1] + 1) / len(mask), (down[-1] + 1) / len(mask)]


def _bits(mask: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG", compress_level=1)
    return png.getvalue()


def _artists(split: str, held_out: str) -> list[str]:
    return [held_out] if split == "test" else [artist for artist in ARTISTS if artist != held_out]


def _side(size: int) -> int:
    return ROUGH if size <= 112 else FINE


@functools.cache
def _pngs(artist: str, side: int) -> dict[str, bytes]:
    return drawings(artist, side)


@functools.cache
def _colour(artist: str, code: str) -> str | None:
    return prevailing(picture(_pngs(artist, ROUGH)[code]))  # of this side always: the captions of every size agree


@functools.cache
def _levels(artist: str, code: str, side: int) -> tuple[tuple[Image.Image], ...]:
    """Return a drawing as a sticker with a white rim, in falling sizes, its colours multiplied by alpha."""
    drawn, rim = picture(_pngs(artist, side)[code]), side // 32
    tight = drawn.crop(drawn.getchannel("A").point(lambda v: 255 * (v > 64)).getbbox())
    scale = (side - 2 * rim - 2) / max(tight.size)
    width, height = (max(1, round(scale * s)) for s in tight.size)
    whole = Image.new("RGBA", drawn.size)
    whole.paste(tight.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2))
    shape = whole.getchannel("A")
    grown = shape.filter(ImageFilter.MaxFilter(2 * rim + 1)).filter(ImageFilter.GaussianBlur(rim / 3))
    paper = Image.new("RGBA", drawn.size, (255, 255, 255, 0))
    paper.putalpha(ImageChops.lighter(grown, shape))
    sticker = Image.alpha_composite(paper, whole).convert("RGBa")
    sides = [s for s in (160, 112, 80, 64, 48, 32, 24, 16) if s <= side]
    return tuple((sticker.resize((s, s), Image.Resampling.LANCZOS),) for s in sides)
