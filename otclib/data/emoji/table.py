"""Drawings with the words that people gave them, one drawing a row. The harsh world: five images of a thing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from PIL import Image

from otclib.data import grammar, scenes
from otclib.data.cache import cache_dir, kept
from otclib.data.emoji import sources
from otclib.data.emoji.drawings import drawings, picture
from otclib.data.emoji.sources import ARTISTS, HELD_OUT
from otclib.data.emoji.things import GROUPS, Named, things
from otclib.data.parallel import shown

VERSION = 2  # part of the cache's name: raise it when the same seed begins to give other rows
FEATURES = Features({**scenes.PAIR, "artist": Value("string"), "group": Value("string")})
FORMS = (  # {a}: the name with its article, {n}: without; {k}: a keyword
    "a drawing of {a}",
    "an emoji of {a}",
    "clip art of {a}",
    "a picture of {a}",
    "{a}",
    "{n}",
    "{n} emoji",
    "{n} icon",
    "{n}, {k}",
    "{n}: {k}, {k}",
    "{a}, {k} and {k}",
    "{k}, {k}, {k}",
)


def load(
    split: str,
    *,
    size: int | None,
    seed: int,
    root: str | Path | None,
    image_size: int = 64,
    label: str = "name",
    held_out: str = HELD_OUT,
) -> Dataset:
    """Return the table of a split, from the cache or drawn. ``root`` has the packages, see ``sources.packages``.

    ``train`` has what five artists drew, less the ``val`` part: of every fifth thing one drawing. ``test`` has the
    drawings of the sixth artist, ``held_out``. A ``size`` draws so many of them by the seed.

    ``label`` : ``"name"`` of the thing, or its ``"group"``, one of seven. Both are columns.
    """
    scenes.check(split, image_size)
    if label not in ("name", "group"):
        raise ValueError(f"label is 'name' or 'group', got {label!r}")
    sources.check_artist(held_out)
    wanted = list(_drawn(split, held_out, root))
    folder = cache_dir() / f"emoji-v{VERSION}-{split}-{label}-without-{held_out}-{image_size}px-seed{seed}"
    rows = shown(_rows(split, wanted, seed, image_size, label, root), len(wanted), f"drawing {split} emoji")
    table = kept(folder, lambda: Dataset.from_list(list(rows), features=FEATURES))
    if size is None:
        return table
    if size > len(table):
        raise ValueError(f"'emoji' {split!r} has {len(table)} drawings, asked for {size}")
    return table.select(np.sort(np.random.default_rng(seed).permutation(len(table))[:size]))


def caption(thing: Named, rng: np.random.Generator) -> str:
    """Return a caption of a thing as people write them: its name in a phrase, with keywords, or keywords alone."""
    forms = [form for form in FORMS if form.count("{k}") <= len(thing.keywords)]
    form = forms[int(rng.integers(len(forms)))]
    noun = f"{grammar.article(thing.name)} {thing.name}" if grammar.takes_article(thing.name) else thing.name
    for keyword in rng.permutation(list(thing.keywords)).tolist() if "{k}" in form else []:
        form = form.replace("{k}", keyword, 1)
    return form.format(a=noun, n=thing.name)


def _drawn(split: str, held_out: str, root: str | Path | None) -> Iterator[tuple[Named, str]]:
    """Yield the things of a split, each with the artists who drew it."""
    for thing in things(root):
        artists = [artist for artist in ARTISTS if artist in thing.icons and artist != held_out]
        number = int(hashlib.sha256(thing.code.encode()).hexdigest(), 16)
        kept_back = artists[number // 5 % len(artists)] if number % 5 == 0 else None
        if split == "test":
            artists = [held_out] if held_out in thing.icons else []
        elif split == "val":
            artists = [kept_back] if kept_back else []
        yield from ((thing, artist) for artist in artists if split != "train" or artist != kept_back)


def _rows(
    split: str, wanted: list[tuple[Named, str]], seed: int, side: int, label: str, root: str | Path | None
) -> Iterator[dict]:
    drawn = {artist: drawings(artist, side, root) for artist in {artist for _, artist in wanted}}
    for k, (thing, artist) in enumerate(wanted):
        rng = np.random.default_rng([seed, list(scenes.SPLITS).index(split), k, 2])
        paper = Image.new("RGBA", (side, side), "white")
        image = Image.alpha_composite(paper, picture(drawn[artist][thing.code])).convert("RGB")
        group = GROUPS[thing.group]
        yield {
            "id": f"{artist}/{thing.code}",
            "image": scenes.stored(np.asarray(image)),
            "caption": caption(thing, rng),
            "label": thing.name if label == "name" else group,
            "artist": artist,
            "group": group,
        }
