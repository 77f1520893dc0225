"""What is drawn: names, keywords and groups of about 1,250 things that are neither people nor flags."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset

from otclib.data.cache import cache_dir, kept
from otclib.data.emoji.sources import ARTISTS, WORDS, content

VERSION = 2  # part of the cache's name: raise it when other packages or rules give other things
GROUPS = {  # emojibase's numbers; 1 is people, 2 parts such as hair, 9 flags
    0: "smileys",
    3: "animals and nature",
    4: "food and drink",
    5: "travel and places",
    6: "activities",
    7: "objects",
    8: "symbols",
}
CONCRETE = (3, 4, 5, 6, 7)
RARE = 3  # a keyword of more things than this, as "animal", does not stand for one of them


@dataclass(frozen=True)
class Named:
    """A thing: its code point, its name, the keywords of people, its group, and its icon in the set of each artist."""

    code: str
    name: str
    keywords: tuple[str, ...]
    synonyms: tuple[str, ...]  # the keywords that name few other things
    group: int
    icons: dict[str, str]  # artist -> name in the set; without those who did not draw it


@functools.cache
def things(root: str | Path | None = None) -> tuple[Named, ...]:
    """Return all things, in the order of Unicode, from the cache or read. ``root`` : see ``sources.packages``."""
    table = kept(
        cache_dir() / "drawings" / f"things-v{VERSION}", lambda: Dataset.from_list(list(map(asdict, _read(root))))
    )
    return tuple(
        Named(
            code=row["code"],
            name=row["name"],
            keywords=tuple(row["keywords"]),
            synonyms=tuple(row["synonyms"]),
            group=row["group"],
            icons={artist: icon for artist, icon in row["icons"].items() if icon},
        )
        for row in table
    )


def _read(root: str | Path | None) -> Iterator[Named]:
    """Yield the things that the packages name.

    Icons are looked up by code point. Two sets come without code points: the icons of ``fluent-emoji`` have the names
    of ``fluent-emoji-flat``, and those of ``emojione`` are found by the thing's name in English or in another set.
    """
    icons = {artist: content(package, "icons.json", root) for artist, package in ARTISTS.items()}
    drawn = {artist: {*found["icons"], *found.get("aliases", {})} for artist, found in icons.items()}
    coded = {artist: content(package, "chars.json", root) for artist, package in ARTISTS.items()}
    coded["fluent-emoji"] = coded["fluent-emoji-flat"]
    entries = [entry for entry in content(WORDS, "en/data.json", root) if entry.get("group") in GROUPS]
    names = {entry["label"].lower() for entry in entries}
    used = Counter(tag for entry in entries for tag in set(entry.get("tags", ())))
    for entry in entries:
        code = entry["hexcode"].lower()
        spellings = (code, code.replace("-fe0f", ""), f"{code}-fe0f")
        found = {artist: next((table[s] for s in spellings if s in table), None) for artist, table in coded.items()}
        guesses = [_slug(entry["label"]), *filter(None, found.values())]
        found["emojione"] = next((name for name in guesses if name in drawn["emojione"]), None)
        own = {artist: icon for artist, icon in found.items() if icon is not None and icon in drawn[artist]}
        tags = [tag for tag in entry.get("tags", ()) if any(map(str.isalpha, tag))]  # "&" is no word
        keywords = tuple(tag for tag in tags if tag.lower() != entry["label"].lower())
        synonyms = tuple(k for k in keywords if used[k] <= RARE and k not in names and re.fullmatch("[a-z]{3,}", k))
        yield Named(code, entry["label"], keywords, synonyms, entry["group"], own)


@functools.cache
def ranked(root: str | Path | None = None) -> tuple[Named, ...]:
    """Return the things that all six artists drew: first concrete ones, of these first those with short names.

    The order within is that of a hash, so that the first 200 are of all groups.
    """

    def rank(thing: Named) -> tuple:
        words = len(re.findall(r"\w+", thing.name))
        return thing.group not in CONCRETE, words, hashlib.sha256(thing.code.encode()).hexdigest()

    return tuple(sorted((thing for thing in things(root) if len(thing.icons) == len(ARTISTS)), key=rank))


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.replace("’", "")).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")
