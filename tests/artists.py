"""Seven small packages in the form of the real ones, with simple drawings of a dozen things by six artists."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import pytest
from copies import put_tar_gz

from otclib.data.emoji import drawings, scenes, sources, table, things

COLOURS = {"noto": "red", "twemoji": "blue", "openmoji": "green", "fluent-emoji": "black", "emojione": "purple"}
THINGS = (  # name, code, keywords, group
    ("umbrella", "2602-FE0F", ["rain", "parasol", "clothing"], 7),
    ("hot dog", "1F32D", ["frankfurter", "sausage", "food"], 4),
    ("cat", "1F408", ["kitty", "animal", "dog"], 3),
    ("dog", "1F415", ["puppy", "animal"], 3),
    ("cow", "1F404", ["cattle", "animal", "moo"], 3),
    ("ant", "1F41C", ["insect", "animal"], 3),
    ("jeans", "1F456", ["trousers", "clothing"], 7),
    ("rocket", "1F680", ["space", "launch", "3-2-1"], 5),
    ("grinning face", "1F600", ["smile", "happy"], 0),
    ("bus", "1F68C", ["coach", "vehicle"], 5),
    ("orca", "1FACD", ["whale"], 3),  # the last two are not drawn by all
    ("melting face", "1FAE0", ["heat"], 0),
    ("flag", "1F3C1", ["racing"], 9),  # neither flags nor people are used
    ("person", "1F9D1", ["adult"], 1),
)


def _icon(name: str, artist: str) -> str:
    """A bar and a disc; their places tell the thing, their colour tells the artist."""
    k = [thing[0] for thing in THINGS].index(name)
    bar = f'<rect x="2" y="{2 + k}" width="20" height="{3 + k % 4}" fill="{COLOURS.get(artist, "orange")}"/>'
    disc = f'<circle cx="{4 + k}" cy="16" r="5" fill="{COLOURS.get(artist, "orange")}"/>'
    return bar + disc


def packages(folder: Path) -> dict[str, sources.Package]:
    """Write the packages; return them by artist, and the words as ``words``, with the checksums of these files."""
    out = {}
    for artist, package in sources.ARTISTS.items():
        lacking = {"emojione": {"melting face"}, "fluent-emoji": {"orca"}, "fluent-emoji-flat": {"orca"}}
        own = [thing for thing in THINGS if thing[0] not in lacking.get(artist, ())]
        slugs = {name: name.replace(" ", "-") for name, *_ in own}
        icons = {slug: {"body": _icon(name, artist)} for name, slug in slugs.items()}
        icons["bus"] |= {"width": 30, "height": 24}  # not a square
        chars = {code.lower().replace("-fe0f", ""): slugs[name] for name, code, *_ in own}
        alias = {"aliases": {"kitten": {"parent": "cat"}}}
        if artist == "noto":
            chars["1f408"] = "kitten"
        files = {"icons.json": {"icons": icons, "width": 24, "height": 24, **alias}, "chars.json": chars}
        if artist in ("emojione", "fluent-emoji"):
            files["chars.json"] = {}
        out[artist] = _written(folder, package, files)
    rows = [{"label": n, "hexcode": c, "tags": tags, "group": group} for n, c, tags, group in THINGS]
    out["words"] = _written(folder, sources.WORDS, {"en/data.json": rows})
    return out


def _written(folder: Path, package: sources.Package, files: dict) -> sources.Package:
    put_tar_gz(folder / package.file, {f"package/{name}": json.dumps(of) for name, of in files.items()})
    digest = hashlib.sha512((folder / package.file).read_bytes()).digest()
    return dataclasses.replace(package, sha512=base64.b64encode(digest).decode())


def installed(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Make ``load`` believe that the small packages are the real ones, with a cache of their own."""
    found = packages(folder / "packages")
    words = found.pop("words")
    patch.setenv("OTCLIB_CACHE", str(folder / "cache"))
    for module in (sources, things, drawings, scenes, table):
        patch.setattr(module, "ARTISTS", found)
        if hasattr(module, "WORDS"):
            patch.setattr(module, "WORDS", words)
    for function in forgotten():
        function.cache_clear()
    patch.setattr(scenes, "CLASSES", 8)
    return folder / "packages"


def forgotten() -> list[functools._lru_cache_wrapper]:
    """What the modules remember of the packages."""
    return [sources.packages, things.things, things.ranked, scenes._pngs, scenes._colour, scenes._levels]
