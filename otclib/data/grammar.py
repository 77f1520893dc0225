"""The content of the embedded scenes and the grammar of their captions: ``sample`` a scene, ``describe`` it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

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
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {  # inks that stand out on a pale backing
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
ATTRIBUTES = frozenset(
    word
    for name, synonyms in [*SIZES.items(), *((name, more) for name, (_, more) in COLOURS.items()), ("white", ())]
    for word in (name, *synonyms)
)

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
    "scissors shears music peace radiation radioactivity lightning coffee bones mail dice sunshine love bread bacon "
    "popcorn spaghetti sushi sake oden fog construction camping cooking badminton tennis baseball basketball".split()
)
FORMS = (  # {} takes the objects, and the ground if it is named
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
TEMPLATES_OF_DRAWINGS = ("a drawing of a {}", "an emoji of a {}", "clip art of a {}", "a picture of a {}", "a {}")


@dataclass
class Thing:
    """One object of a scene; lengths in units of the image side, angle in degrees."""

    name: str
    colour: str | None  # its name; None: no colour prevails
    rgb: tuple[int, int, int] | None  # the ink; None: a drawing with colours of its own
    size: str
    diameter: float
    x: float
    y: float
    angle: float
    synonyms: tuple[str, ...] = ()

    @property
    def box(self) -> list[float]:
        """Left, top, right and bottom in [0, 1]."""
        r = self.diameter / 2
        return [max(0.0, self.x - r), max(0.0, self.y - r), min(1.0, self.x + r), min(1.0, self.y + r)]


@dataclass
class Scene:
    """The ground of a scene, and its objects."""

    ground: str
    texture: tuple[int, int, int, int]  # which variant, offset x and y in 1/256, flips
    tint: tuple[float, float, float]
    things: list[Thing] = field(default_factory=list)


def sample(rng: np.random.Generator, max_objects: int = 3) -> Scene:
    """Draw a scene: 75 % hold one object, 19 % two, 6 % three (or one each, if ``max_objects`` is 1)."""
    scene, count = empty(rng, max_objects)
    names = rng.choice(len(OBJECTS), count, replace=False)
    for n in names:
        name = list(OBJECTS)[n]
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        r, g, b = (min(255, max(0, int(v + d))) for v, d in zip(COLOURS[colour][0], rng.normal(0, 10, 3)))
        size, diameter, x, y = place(rng, scene, count)
        angle = float(rng.uniform(-15, 15))
        scene.things.append(Thing(name, colour, (r, g, b), size, diameter, x, y, angle, OBJECTS[name][1]))
    return scene


def empty(rng: np.random.Generator, max_objects: int) -> tuple[Scene, int]:
    """Draw a ground, and the number of objects that will lie on it."""
    grounds = list(GROUNDS)
    u = rng.random(8)
    scene = Scene(
        ground=grounds[int(u[1] * len(grounds))],
        texture=(int(u[2] * 4), int(u[3] * 256), int(u[4] * 256), int(u[5] * 4)),
        tint=tuple(rng.uniform(0.88, 1.1, 3)),
    )
    return scene, min(max_objects, 1 + int(u[0] > 0.75) + int(u[0] > 0.94))


def place(rng: np.random.Generator, scene: Scene, count: int) -> tuple[str, float, float, float]:
    """Draw the size of the next of ``count`` objects, and its place: size's name, diameter, x and y."""
    size = "large" if rng.random() < 0.5 else "small"
    diameter = rng.uniform(0.46, 0.60) if size == "large" else rng.uniform(0.34, 0.42)
    diameter *= (1.0, 0.82, 0.70)[count - 1]
    for _ in range(12):  # a free place, or the last one tried
        x, y = rng.uniform(diameter / 2, 1 - diameter / 2, 2).tolist()
        if all((x - t.x) ** 2 + (y - t.y) ** 2 > ((diameter + t.diameter) * 0.45) ** 2 for t in scene.things):
            break
    return size, float(diameter), x, y


def article(word: str) -> str:
    """Return ``an`` before a vowel sound ("an umbrella", "an hour"), else ``a`` ("a star", "a unicorn")."""
    word = word.lower()
    if re.match(r"eu|ewe|one\b|uni(?![nmd])|u[st]e|uku|ura", word):  # begins like "you" or "one"
        return "a"
    return "an" if re.match(r"[aeiou]|hour|heir|honest|honou?r", word) else "a"


def takes_article(noun: str) -> bool:
    """Return whether a noun in the singular takes "a" or "an": not "scissors", and no other plural ("jeans").

    >>> takes_article("bus"), takes_article("hot dog"), takes_article("french fries"), takes_article("bread")
    (True, True, False, False)
    """
    return noun not in NO_ARTICLE and not re.search(r"[^aiosu]s$", noun)


def describe(scene: Scene, rng: np.random.Generator) -> tuple[str, list[dict]]:
    """Return a caption of the scene and its content words: text, start, end (characters) and object.

    ``object`` is the index of the thing that the word names or describes, or -1 for the ground. The first thing is
    always named, and each further one in 75 % of the captions. Colour and ground are named in 15 %, size in 8 %. A
    name of several words, "hot dog", has several content words.
    """

    def pick(word: str, synonyms: tuple[str, ...]) -> str:
        return word if not synonyms or rng.random() < 0.75 else synonyms[int(rng.integers(len(synonyms)))]

    phrases: list[list[tuple[str, int | None]]] = []  # one per object: (word, object or None for a function word)
    for k, t in enumerate(scene.things):
        if k and rng.random() > 0.75:
            continue
        words: list[tuple[str, int | None]] = []
        if rng.random() < 0.08:
            words.append((pick(t.size, SIZES[t.size]), k))
        if t.colour and rng.random() < 0.15:
            words.append((pick(t.colour, COLOURS[t.colour][1] if t.rgb else ()), k))
        words.append((pick(t.name, t.synonyms), k))
        if takes_article(words[-1][0]):
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
    text, content = before, []
    for k, (word, thing) in enumerate(parts):
        text += " " if k else ""
        for part in re.finditer(r"\S+", word if thing is not None else ""):
            start = len(text) + part.start()
            content.append({"text": part[0], "start": start, "end": start + len(part[0]), "object": thing})
        text += word
    return text + after, content
