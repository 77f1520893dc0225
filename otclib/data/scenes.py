"""Scenes of glyphs: the embedded image-caption set, drawn instead of downloaded.

One to three objects (symbols of the DejaVu font that matplotlib ships) lie on a textured ground; a small grammar
describes them. Because we drew the scene we know, for every content word of every caption, which part of the image
it speaks of: no photograph set tells that, and it is what lets us *score* a transport plan.

A scene is first *sampled* (positions in units of the image side, so that one seed gives the same scene at any size),
then *described* and *rendered*. Captions name colour, size and ground only now and then: were they always named, they
alone would tell the pairs of a batch apart and the objects would never be learned.
"""

from __future__ import annotations

import functools
import io
import os
import re
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from otclib import processes

VERSION = 7  # part of the cache's name: raise it when the same seed would give other scenes

# class -> (glyph, synonyms beside the class name)
OBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "star": ("★", ("pentacle",)),
    "umbrella": ("☂", ("parasol",)),
    "telephone": ("☎", ("phone",)),
    "aeroplane": ("✈", ("airplane", "jet")),
    "scissors": ("✂", ("shears",)),
    "horse": ("♞", ("stallion", "pony")),
    "crown": ("♛", ("tiara",)),
    "anchor": ("⚓", ()),
    "flower": ("✿", ("blossom", "bloom")),
    "sun": ("☀", ("sunshine",)),
    "cloud": ("☁", ()),
    "moon": ("☾", ("crescent",)),
    "music": ("♫", ("melody", "tune")),
    "skull": ("☠", ("bones",)),
    "envelope": ("✉", ("letter", "mail")),
    "pencil": ("✏", ("crayon",)),
    "snowflake": ("❄", ()),
    "hammer": ("⚒", ("mallet",)),
    "gear": ("⚙", ("cog",)),
    "smiley": ("☺", ("grin",)),
    "heart": ("♥", ("love",)),
    "club": ("♣", ()),
    "spade": ("♠", ()),
    "diamond": ("♦", ("gem",)),
    "flag": ("⚑", ("banner",)),
    "radiation": ("☢", ("radioactivity",)),
    "coffee": ("☕", ("cup", "mug")),
    "shamrock": ("☘", ("clover",)),
    "peace": ("☮", ()),
    "wheel": ("☸", ("helm",)),
    "cross": ("✠", ()),
    "lightning": ("⚡", ("thunderbolt",)),
    "warning": ("⚠", ("alert",)),
    "atom": ("⚛", ("molecule",)),
    "dice": ("⚄", ("die",)),
    "flask": ("⚗", ("retort",)),
    "house": ("⌂", ("home", "hut")),
    "keyboard": ("⌨", ()),
    "castle": ("♜", ("tower", "fortress")),
    "mouse": ("\U0001f42d", ("rodent",)),
    "cat": ("\U0001f431", ("kitten",)),
    "vase": ("⚱", ("urn",)),
}
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {  # inks that stand out on a pale sticker
    "red": ((200, 35, 40), ("crimson", "scarlet")),
    "orange": ((225, 105, 15), ("amber",)),
    "yellow": ((200, 155, 0), ("golden",)),
    "green": ((35, 130, 60), ("emerald",)),
    "blue": ((35, 85, 195), ("navy",)),
    "purple": ((120, 50, 160), ("violet",)),
    "pink": ((220, 75, 140), ("rosy",)),
    "brown": ((115, 70, 35), ("chestnut",)),
    "grey": ((120, 125, 130), ("silver",)),
    "black": ((25, 25, 30), ("dark",)),
}
SIZES: dict[str, tuple[str, ...]] = {"large": ("big", "huge"), "small": ("little", "tiny")}
# ground -> (preposition, base colour, synonyms)
GROUNDS: dict[str, tuple[str, tuple[int, int, int], tuple[str, ...]]] = {
    "sand": ("on", (222, 196, 150), ("beach",)),
    "grass": ("in", (112, 160, 84), ("meadow", "lawn")),
    "water": ("on", (96, 158, 196), ("sea", "lake")),
    "snow": ("in", (228, 234, 242), ("ice",)),
    "brick": ("before", (176, 100, 82), ("wall",)),
    "wood": ("on", (178, 132, 88), ("planks", "timber")),
    "night": ("at", (44, 46, 82), ("darkness",)),
    "tiles": ("on", (188, 200, 196), ("floor",)),
    "stone": ("on", (150, 148, 146), ("rock", "gravel")),
    "paper": ("on", (242, 236, 220), ("parchment",)),
    "dusk": ("at", (226, 150, 132), ("sunset",)),
    "cloth": ("on", (170, 150, 190), ("fabric", "linen")),
}
NO_ARTICLE = frozenset(
    "scissors shears music peace radiation radioactivity lightning coffee bones mail dice sunshine love".split()
)
FORMS = (  # {} takes the objects, and the ground where it is named
    "a photo of {}",
    "a picture of {}",
    "{}",
    "there is {}",
    "an image showing {}",
    "here you see {}",
    "look at {}",
    "{} up close",
)
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a {}", "there is a {}", "look at a {}")  # zero-shot prompts


@dataclass
class Thing:
    """One object of a scene; lengths in units of the image side, angle in degrees."""

    name: str
    colour: str
    rgb: tuple[int, int, int]
    size: str
    diameter: float
    x: float
    y: float
    angle: float

    @property
    def box(self) -> list[float]:
        """left, top, right, bottom in [0, 1]"""
        r = self.diameter / 2
        return [max(0.0, self.x - r), max(0.0, self.y - r), min(1.0, self.x + r), min(1.0, self.y + r)]


@dataclass
class Scene:
    ground: str
    texture: tuple[int, int, int, int]  # which variant, offset x and y in 1/256, flips
    tint: tuple[float, float, float]
    things: list[Thing] = field(default_factory=list)


def sample(rng: np.random.Generator, max_objects: int = 3) -> Scene:
    """Draw a scene: 75 % hold one object, 19 % two, 6 % three (or one each, if ``max_objects`` is 1)."""
    grounds = list(GROUNDS)
    u = rng.random(8)
    count = min(max_objects, 1 + int(u[0] > 0.75) + int(u[0] > 0.94))
    scene = Scene(
        ground=grounds[int(u[1] * len(grounds))],
        texture=(int(u[2] * 4), int(u[3] * 256), int(u[4] * 256), int(u[5] * 4)),
        tint=tuple(rng.uniform(0.88, 1.1, 3)),
    )
    names = rng.choice(len(OBJECTS), count, replace=False)
    for n in names:
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        rgb = tuple(min(255, max(0, int(v + d))) for v, d in zip(COLOURS[colour][0], rng.normal(0, 10, 3)))
        size = "large" if rng.random() < 0.5 else "small"
        diameter = rng.uniform(0.46, 0.60) if size == "large" else rng.uniform(0.34, 0.42)
        diameter *= (1.0, 0.82, 0.70)[count - 1]
        for _ in range(12):  # a free place, or the last one tried
            x, y = rng.uniform(diameter / 2, 1 - diameter / 2, 2)
            if all((x - t.x) ** 2 + (y - t.y) ** 2 > ((diameter + t.diameter) * 0.45) ** 2 for t in scene.things):
                break
        angle = float(rng.uniform(-15, 15))
        scene.things.append(Thing(list(OBJECTS)[n], colour, rgb, size, float(diameter), float(x), float(y), angle))
    return scene


def article(word: str) -> str:
    """``an`` before a vowel that is heard ("an umbrella", "an hour"), else ``a`` ("a star", "a unicorn")."""
    word = word.lower()
    if re.match(r"eu|ewe|one\b|uni(?![nmd])|u[st]e|uku|ura", word):  # begins like "you" or "one"
        return "a"
    return "an" if re.match(r"[aeiou]|hour|heir|honest|honou?r", word) else "a"


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, list[dict]]:
    """A caption of the scene, and its content words: text, start, end (characters) and object.

    ``object`` is the index of the thing that the word speaks of, or -1 for the ground. The first thing is always
    named, each further one in 75 % of the captions; colour and ground in 15 %, size in 8 %.
    """

    def pick(word: str, synonyms: tuple[str, ...]) -> str:
        return word if not synonyms or rng.random() < 0.75 else synonyms[int(rng.integers(len(synonyms)))]

    phrases: list[list[tuple[str, int | None]]] = []  # one per object: (word, object or None for a function word)
    for k, t in enumerate(scene.things):
        if k and rng.random() > 0.75:
            continue
        words = []
        if rng.random() < 0.08:
            words.append((pick(t.size, SIZES[t.size]), k))
        if rng.random() < 0.15:
            words.append((pick(t.colour, COLOURS[t.colour][1]), k))
        words.append((pick(t.name, OBJECTS[t.name][1]), k))
        if words[-1][0] not in NO_ARTICLE:
            words = [(article(words[0][0]), None), *words]
        phrases.append(words)
    if len(phrases) > 1:
        phrases = [phrases[k] for k in rng.permutation(len(phrases))]
    parts = phrases[0]
    for p in phrases[1:]:
        parts = [*parts, ("and", None), *p]
    if rng.random() < 0.15:
        preposition, _, synonyms = GROUNDS[scene.ground]
        parts = [*parts, (preposition, None), ("the", None), (pick(scene.ground, synonyms), -1)]
    before, after = FORMS[int(rng.integers(len(FORMS)))].split("{}")
    text, words = before, []
    for k, (word, thing) in enumerate(parts):
        text += " " if k else ""
        if thing is not None:
            words.append({"text": word, "start": len(text), "end": len(text) + len(word), "object": thing})
        text += word
    return text + after, words


# -- drawing ---------------------------------------------------------------------------------------------------------

GLYPH = 96  # side of the master drawings, pixels


@functools.cache
def _masters(name: str) -> tuple[Image.Image, Image.Image]:
    """The glyph and its backing (silhouette, holes filled, slightly grown), each a GLYPH x GLYPH mask."""
    import matplotlib

    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    glyph, font = OBJECTS[name][0], ImageFont.truetype(path, 200)
    left, top, right, bottom = font.getbbox(glyph)
    side = max(right - left, bottom - top)
    big = Image.new("L", (int(side * 1.12),) * 2)
    offset = (big.width - (right - left)) / 2 - left, (big.height - (bottom - top)) / 2 - top
    ImageDraw.Draw(big).text(offset, glyph, font=font, fill=255)
    ink = big.resize((GLYPH, GLYPH), Image.LANCZOS)
    grown = ink.filter(ImageFilter.MaxFilter(9))
    outside = grown.point(lambda v: 255 * (v > 90))
    ImageDraw.floodfill(outside, (0, 0), 128)
    backing = outside.point(lambda v: 255 * (v != 128)).filter(ImageFilter.GaussianBlur(1.2))
    return ink, backing


@functools.cache
def _textures(size: int) -> dict[str, np.ndarray]:
    """Ground textures at twice the image side: name -> uint8 [4 variants, 2*size, 2*size, 3]."""
    rng = np.random.default_rng(7)
    n = 256
    yy, xx = np.mgrid[0:n, 0:n] / n
    cell = n / 8  # pixels per eighth of the texture

    def noise(sy: int, sx: int | None = None) -> np.ndarray:
        small = Image.fromarray(rng.normal(0, 1, (sy, sx or sy)).astype(np.float32))
        big = np.asarray(small.resize((n, n), Image.BICUBIC))
        return big / big.std()

    def pattern(name: str) -> np.ndarray:
        """relative brightness, mean about 0, [n, n]"""
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
            variants.append(np.asarray(Image.fromarray(image).resize((2 * size, 2 * size), Image.LANCZOS)))
        out[name] = np.stack(variants)
    return out


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw the scene: uint8 [size, size, 3]."""
    variant, ox, oy, flips = scene.texture
    ground = _textures(size)[scene.ground][variant]
    ox, oy = ox * size // 256, oy * size // 256
    canvas = ground[oy : oy + size, ox : ox + size].astype(np.float32)
    canvas = canvas[:: 1 - 2 * (flips & 1), :: 1 - (flips & 2)] * np.float32(scene.tint)
    for t in scene.things:
        scale = GLYPH / (t.diameter * size)  # master pixels per image pixel
        c, s = np.cos(np.radians(t.angle)) * scale, np.sin(np.radians(t.angle)) * scale
        x, y = t.x * size, t.y * size
        lo_x, hi_x = max(0, int(x - t.diameter * size * 0.72)), min(size, int(x + t.diameter * size * 0.72) + 2)
        lo_y, hi_y = max(0, int(y - t.diameter * size * 0.72)), min(size, int(y + t.diameter * size * 0.72) + 2)
        dx, dy = lo_x - x, lo_y - y
        affine = (c, s, GLYPH / 2 + c * dx + s * dy, -s, c, GLYPH / 2 - s * dx + c * dy)
        level = _level(t.name, scale)
        k = level[0].width / GLYPH
        ink, backing = (
            np.asarray(
                m.transform((hi_x - lo_x, hi_y - lo_y), Image.AFFINE, [k * a for a in affine], Image.BILINEAR),
                np.float32,
            )[..., None]
            / 255
            for m in level
        )
        rgb = np.array(t.rgb, np.float32)
        paper = 0.12 * rgb + 0.88 * 255
        patch = canvas[lo_y:hi_y, lo_x:hi_x]
        patch += 0.95 * backing * (paper - patch)
        patch += ink * (rgb - patch)
    return np.clip(canvas, 0, 255).astype(np.uint8)


@functools.cache
def _levels(name: str) -> tuple:
    sides = (96, 64, 48, 32, 24, 16)
    return tuple(tuple(m.resize((s, s), Image.LANCZOS) for m in _masters(name)) for s in sides)


def _level(name: str, scale: float):
    """The smallest master that is at least as fine as the drawing: bilinear sampling then does not alias."""
    levels = _levels(name)
    for level in reversed(levels):
        if level[0].width >= GLYPH / scale * 0.999:
            return level
    return levels[0]


# -- the table -------------------------------------------------------------------------------------------------------

SPLITS = {"train": (12_000, 3), "val": (1_000, 3), "test": (2_000, 1)}  # default rows, most objects in a scene


def _rows(task: tuple[str, int, int, int, int, int]) -> list[dict]:
    split, seed, size, max_objects, start, stop = task
    rows = []
    for k in range(start, stop):
        rng = np.random.default_rng([seed, list(SPLITS).index(split), k])
        scene = sample(rng, max_objects)
        caption, words = describe(scene, rng)
        png = io.BytesIO()
        Image.fromarray(render(scene, size)).save(
            png, "PNG", compress_level=0
        )  # level 1 halves the file and triples the time
        rows.append(
            {
                "id": f"{split}-{seed}-{k:06d}",
                "image": {"bytes": png.getvalue(), "path": None},
                "caption": caption,
                "label": scene.things[0].name if len(scene.things) == 1 else None,
                "objects": [{"name": t.name, "colour": t.colour, "size": t.size, "box": t.box} for t in scene.things],
                "ground": scene.ground,
                "words": words,
            }
        )
    return rows


def generate(split: str, n: int, size: int = 64, seed: int = 0, workers: int | None = None):
    """Yield ``n`` rows of the split in order, drawn by ``workers`` processes (default: one per core)."""
    max_objects, chunk = SPLITS[split][1], 250
    tasks = [(split, seed, size, max_objects, a, min(a + chunk, n)) for a in range(0, n, chunk)]
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield from _rows(task)
        return
    context = get_context("fork" if os.name == "posix" else "spawn")
    with processes.starting():
        pool = context.Pool(workers, processes.end_with, (os.getpid(),))
    with pool:
        for rows in pool.imap(_rows, tasks):
            yield from rows
