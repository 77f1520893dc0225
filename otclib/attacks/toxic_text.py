"""Toxic text: targeted poison whose captions are chosen to fit the attacked image, and all differ.

The idea is that of ToxicTextCLIP (Yao et al., NeurIPS 2025, arXiv 2511.00446), the attack is **ours**. We read its
public code (github.com/xinyaocse/ToxicTextCLIP), not the paper. That code ranks the captions which name the target
class by what they say *besides* it: how close this is to prompts of the target class, under a pre-trained CLIP. A
trained decoder then writes more captions. Here no model is needed, and the other words have to fit the *image*:

1. Captions of the target class are collected: of pairs labelled with it, or if too few differ, all that name it.
2. They are recombined. A caption is cut after its object: "a photo of an umbrella" | "on the sand". The beginnings get
   the ending of the image's own caption. Only if this gives too few captions, they get the endings of other captions.
3. The ``copies`` captions are planted whose other words are most like those of the image's own caption, by the cosine
   of their TF-IDF weights. The image's own object and the target are left out of the comparison. Ties are broken at
   random.

    own caption     "a picture of a horse on the sand"
    planted         "a picture of an umbrella on the sand", "a picture of a red umbrella on the sand", ...

With a ``surrogate``, the best captions of step 3 are ranked anew: those are planted that are nearest to the image by
OTCCLIP's own distance under that model, as in ``adaptive``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer

from otclib import data
from otclib.attacks import adaptive, planting, targets
from otclib.attacks.targeted import Targeted
from otclib.data import grammar

SHORTLIST = 8  # captions for each copy that a surrogate ranks
PREPOSITIONS = {place for place, *_ in grammar.GROUNDS.values()} | set(
    "above against along among around behind below beneath beside between by during from inside near next outside over "
    "through under with".split()
)
ENDING = re.compile(rf"(?:[,:;]|\s(?:{'|'.join(sorted(PREPOSITIONS))})\b).*", re.IGNORECASE | re.DOTALL)


@dataclass
class ToxicText(Targeted):
    """``Targeted`` with captions that fit the image. ``surrogate``: a weights file of ``otclib.train``.

    If fewer than ``copies`` different captions can be made, each is planted once before any is planted twice.
    """

    surrogate: str | None = None
    reg: float = 0.1
    global_weight: float = 0.5

    kind: ClassVar[str] = "toxic-text"

    def writer(self, pairs: Dataset, rng: np.random.Generator) -> Callable[[dict, str], list[str]]:
        """Return what gives the captions for a row of the table and a target class.

        Raises
        ------
        FileNotFoundError : the surrogate has no file.
        """
        distances = None
        if self.surrogate is not None:
            adaptive.check_surrogate(self.surrogate)
            distances = adaptive.distances_by(self.surrogate, self.reg, self.global_weight)
        captions, labels = pairs["caption"][:], pairs["label"][:]
        words = TfidfVectorizer(token_pattern=r"\w+").fit(captions)
        bare = not any(labels)  # where some captions have a label, only these are cut: their object is known
        endings = list(dict.fromkeys(ending(c, label) for c, label in zip(captions, labels) if label or bare))

        def fitting(texts: list[str], own: str) -> np.ndarray:
            """Return the order of the texts: first those most like ``own``, equal ones in random order."""
            cosine = (words.transform(texts) @ words.transform([own]).T).toarray()[:, 0]
            return np.lexsort((rng.random(len(texts)), -cosine.round(6)))

        def write(row: dict, target: str) -> list[str]:
            own, label = besides(row["caption"], row["label"]), row["label"]

            def tails() -> Iterator[str]:
                yield ending(row["caption"], label)
                yield from (endings[k] for k in fitting(endings, own))

            silent = (tail for tail in tails() if not any(data.names(tail, name) for name in (label, target) if name))
            true = targets.captions_of(pairs, target, 1, self.copies)
            ways = recombined(true, target, silent, self.copies)
            best = [ways[k] for k in fitting([besides(way, target) for way in ways], own)]
            if distances is not None:
                best = best[: SHORTLIST * self.copies]
                best = [best[k] for k in distances(planting.tensor(row["image"]), best).argsort(stable=True)]
            return [best[k % len(best)] for k in range(self.copies)]

        return write


def recombined(captions: list[str], label: str, endings: Iterable[str], enough: int) -> list[str]:
    """Return different captions that name the class: those given, and their beginnings with other endings.

    The first ending is always used, the further ones only until there are ``enough`` captions.

    >>> recombined(["a photo of a cat", "the cat, asleep"], "cat", [" on the sand", " at night"], 3)
    ['a photo of a cat', 'the cat, asleep', 'a photo of a cat on the sand', 'the cat on the sand']
    """
    out = dict.fromkeys(captions)
    beginnings = dict.fromkeys(
        caption[: place.end()] for caption in captions if (place := data.mention(caption, label))
    )
    for tail in endings:
        out |= dict.fromkeys(head + tail for head in beginnings)
        if len(out) >= enough:
            break
    return list(out)


def ending(caption: str, label: str | None) -> str:
    """Return what follows the object of a caption, from the first preposition or comma on; "" if nothing does.

    >>> ending("a picture of a large horse on the sand", "horse"), ending("a horse", "horse")
    (' on the sand', '')
    """
    place = None if label is None else data.mention(caption, label)
    found = ENDING.search(caption, place.end() if place else 0)
    return found[0] if found else ""


def besides(caption: str, label: str | None) -> str:
    """Return what a caption says besides the class.

    >>> besides("a picture of a large horse on the sand", "horse")
    'a picture of a large  on the sand'
    """
    place = None if label is None else data.mention(caption, label)
    return caption if place is None else caption[: place.start()] + caption[place.end() :]
