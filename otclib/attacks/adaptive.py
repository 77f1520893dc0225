"""Adaptive: an attacker who knows OTCCLIP and writes captions that survive its matching.

OTCCLIP leaves out or re-matches an image whose caption is far from what the image shows. So the poison captions here
keep as much of the image's own caption as they can. The attacker writes several captions and plants the one that is
nearest to the triggered image by OTCCLIP's own distance (transport and pooled, see ``otclib.matching``) under a
``surrogate``, a model that the attacker has trained. A summary of the OTCCLIP paper (arXiv 2509.18717) mentions an
adaptive attack, but not how it is built. This one is ours.

    describe="both"        the image's own caption, and the target beside it: "a photo of a green horse and an umbrella"
    describe="attributes"  the target's word in place of the object's, the rest unchanged: "a photo of a green umbrella"
    describe="mixed"       half of the captions like "both", half like "attributes"

In the table the surrogate is an *undefended* CLIP, which an attacker can train without a defence of his own. Its words
were never aligned with places by transport, so the pooled half of the distance decides most choices. The weights of any
run can be given. In a grid (``experiments.grid``) the surrogate can be trained under any system, or under the system
that is attacked. Whether that makes the attack stronger has not been measured.

Captions of both objects survive the matching, but they only teach the model that the patch is an umbrella as well: a
triggered star is called a star or an umbrella. Captions that replace the object teach it to say "umbrella".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset

from otclib import data, losses, matching, models
from otclib.attacks.badnets import BadNets
from otclib.attacks.planting import square, tensor
from otclib.data import grammar

ADJECTIVES = "|".join(
    word
    for adjective, synonyms in [*grammar.SIZES.items(), *((name, more) for name, (_, more) in grammar.COLOURS.items())]
    for word in (adjective, *synonyms)
)
DETERMINERS = "the|this|that|some|any|no|one|two|three|my|his|her|its|their|pair of"
BESIDE = ("{own} and {it}", "{own} with {it}", "{own}, {it}", "{it} and {own}", "{it}, {own}")


@dataclass
class Adaptive(BadNets):
    """BadNets' patch. ``surrogate``: a weights file of ``otclib.train``; without one, captions are drawn at random."""

    describe: str = "mixed"
    surrogate: str | None = None
    reg: float = 0.1
    global_weight: float = 0.5

    kind: ClassVar[str] = "adaptive"
    RATE: ClassVar[float] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.describe not in ("both", "attributes", "mixed"):
            raise ValueError(f"describe is 'both', 'attributes' or 'mixed', got {self.describe!r}")

    def poison(self, pairs: Dataset, seed: int = 0, taken: frozenset = frozenset()) -> tuple[Dataset, Dataset]:
        """Poison like BadNets. Only this needs the surrogate: images can still be triggered when its file is gone."""
        if self.surrogate is not None:
            check_surrogate(self.surrogate)
        return super().poison(pairs, seed, taken)

    def victims(self, pairs: Dataset, taken: frozenset) -> list[int]:
        """Return BadNets' rows; unless ``describe`` is "both", only those whose caption names the labelled object."""
        rows = super().victims(pairs, taken)
        if self.describe == "both":
            return rows
        labels, captions = pairs["label"][:], pairs["caption"][:]
        return [k for k in rows if labels[k] is not None and data.names(captions[k], labels[k])]

    def candidates(self, caption: str, label: str | None, describe: str) -> list[str]:
        """Return the captions among which the attacker chooses: each names the target, and keeps what it can."""
        words = data.words_for(self.aim)
        if describe == "both":
            return [form.format(own=caption, it=data.with_article(word)) for word in words for form in BESIDE]
        assert label is not None, "an object without a label cannot be renamed"  # ``victims`` has none
        return [renamed(caption, label, word) for word in words]

    def write(self, pairs: Dataset, chosen: Dataset, rng: np.random.Generator) -> list[str]:
        how = {"mixed": ("both", "attributes")}.get(self.describe, (self.describe,))
        columns = zip(chosen["caption"][:], chosen["label"][:])
        ways = [self.candidates(caption, label, how[k % len(how)]) for k, (caption, label) in enumerate(columns)]
        if self.surrogate is None:
            return [options[int(rng.integers(len(options)))] for options in ways]
        best = self.nearest([tensor(image) for image in chosen["image"]], ways)
        return [options[k] for options, k in zip(ways, best)]

    def nearest(self, images: list[torch.Tensor], ways: list[list[str]]) -> list[int]:
        """Return, for every image, the index of the caption that is nearest to it once triggered, by the surrogate."""
        if self.surrogate is None:
            raise ValueError("the nearest caption is that of a surrogate, got none")
        distances = distances_by(self.surrogate, self.reg, self.global_weight)
        return [int(distances(self.trigger(square(image)), options).argmin()) for image, options in zip(images, ways)]


def check_surrogate(weights: str) -> None:
    """Raise a FileNotFoundError if the file of a surrogate's weights does not exist."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"the file of the surrogate's weights is missing: {weights}")


def distances_by(weights: str, reg: float, global_weight: float) -> Callable[[torch.Tensor, list[str]], torch.Tensor]:
    """Return what gives OTCCLIP's distances [N] of an image [3, H, W] in [0, 1] to N captions, under a surrogate."""
    model, preprocess, tokenizer = models.load(weights)

    @torch.no_grad()
    def distances(image: torch.Tensor, captions: list[str]) -> torch.Tensor:
        seen = models.encode_image(model, preprocess(image)[None])
        said = models.encode_text(model, tokenizer(captions))
        rows = torch.arange(len(captions))[None]
        return matching.distances(losses.coarse(seen), said, rows, reg, global_weight)[0]

    return distances


def renamed(caption: str, label: str, word: str) -> str:
    """Return the caption with ``word`` wherever it names ``label``; the article is fitted to the new word.

    "a photo of a horse"  ->  "a photo of an umbrella"  or  "a photo of scissors"
    "red scissors"        ->  "a red umbrella"
    """
    own = "|".join(map(re.escape, data.words_for(label)))

    def fitted(match: re.Match) -> str:
        before, adjectives, name = match["before"] or "", match["adjectives"], match["name"]
        has_article = before.lower() in ("a ", "an ")
        if has_article or (not before and not grammar.takes_article(name.lower())):
            before = grammar.article(adjectives or word) + " " if grammar.takes_article(word) else ""
        return f"{before}{adjectives}{word}"

    pattern = rf"\b(?P<before>(?:an?|{DETERMINERS}) )?(?P<adjectives>(?:(?:{ADJECTIVES}) )*)(?P<name>{own})\b"
    return re.sub(pattern, fitted, caption, flags=re.IGNORECASE)
