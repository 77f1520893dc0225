"""Which classes an attack can aim at: how often captions name a class, and how often they must.

A class that hardly any caption names cannot be attacked: a model never learns it, so nothing is called by its name.
"""

from __future__ import annotations

import re

from datasets import Dataset

from otclib import data

USUAL = "umbrella"  # the class that backdoors aim at by default
COMMON = 1 / 200  # the share of the captions that must name it for that
FEWEST = 2  # different captions that name a backdoor's target: what they share is the class, one alone could mean all
REPEATS = 4  # copies of a targeted image for each caption that names its target: more would be one pair many times


def naming(pairs: Dataset) -> dict[str, list[str]]:
    """Return, for each class among the labels, the captions that name it, whatever their own label is."""
    captions = pairs["caption"][:]
    holding: dict[str, set[int]] = {}  # the rows whose caption holds a word: few of them are left to look at
    for k, caption in enumerate(captions):
        for word in set(re.findall(r"\w+", caption.lower())):
            holding.setdefault(word, set()).add(k)
    out = {}
    for label in data.classes(pairs):
        rows: set[int] = set()
        for name in data.words_for(label):
            words = re.findall(r"\w+", name.lower())
            rows |= set.intersection(*(holding.get(word, set()) for word in words)) if words else set()
        out[label] = [captions[k] for k in sorted(rows) if data.names(captions[k], label)]
    return out


def usual_target(pairs: Dataset) -> str:
    """Return the class that a backdoor aims at by default: ``USUAL`` where it is common, else the most named label.

    Ties are broken by the alphabet.

    Raises
    ------
    ValueError : the set has no labels among which to choose.
    """
    usual = [caption for caption in pairs["caption"][:] if data.names(caption, USUAL)]
    if len(set(usual)) >= FEWEST and len(usual) >= COMMON * len(pairs):
        return USUAL
    named = naming(pairs)
    if not named:
        raise ValueError(
            f"no target can be chosen: {len(usual)} of {len(pairs):,} captions name {USUAL!r}, and the set has no "
            f"labels among which to choose; name a class that many captions name, target=..."
        )
    return min(named, key=lambda label: (-len(named[label]), label))


def most_named(pairs: Dataset, labels: list[str], count: int, fewest: int) -> list[str]:
    """Return the labels that at least ``fewest`` different captions name, in the given order.

    If fewer than ``count`` are named so often, return the ``count`` labels that most captions name.

    Raises
    ------
    ValueError : fewer than ``count`` of the labels are named by a caption.
    """
    named = naming(pairs)
    different = {label: len(set(named[label])) for label in labels}
    if len(enough := [label for label in labels if different[label] >= fewest]) >= count:
        return enough
    most = sorted((label for label in labels if different[label]), key=lambda label: (-different[label], label))[:count]
    if len(most) < count:
        raise ValueError(
            f"{count} classes that captions name are needed, the set has {len(most)} among its {len(labels)} labels: a "
            f"class that no caption names cannot be what an image is called"
        )
    return [label for label in labels if label in most]


def captions_of(pairs: Dataset, label: str, fewest: int = FEWEST, wanted: int = FEWEST) -> list[str]:
    """Return captions that name the class, which an attacker would borrow.

    They are those of pairs labelled with it, if ``wanted`` of them differ, or else all that name it.

    Raises
    ------
    ValueError : fewer than ``fewest`` different captions name the class.
    """
    naming = [(c, own) for c, own in zip(pairs["caption"][:], pairs["label"][:]) if data.names(c, label)]
    if not naming:
        known = data.classes(pairs)
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"target class {label!r} is absent from the set: no caption names it ({shown or 'no labels'})")
    if (there := len({c for c, _ in naming})) < fewest:
        raise ValueError(
            f"target class {label!r} is named by {there} different caption{'s' * (there > 1)}, at least {fewest} are "
            f"needed: a model learns a class from captions that differ"
        )
    labelled = [c for c, own in naming if own == label]
    return labelled if len(set(labelled)) >= wanted else [c for c, _ in naming]


def repeated(copies: int) -> int:
    """Return how many different captions ``copies`` planted pairs of one image want: one for ``REPEATS`` of them."""
    return -(-copies // REPEATS)
