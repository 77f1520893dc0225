"""One image, one caption, one plan: what the panel and the page show, and what may be chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REGS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
MARGINALS = (3.0, 1.0, 0.3, 0.1, 0.03)  # rho of the words
EXACT, NOWHERE = 0.0, -1  # on the sliders, which know no None: every word gives all that it has; no place is chosen
LAST = "last"  # the name of a finished run's final weights, and of a model that has no epochs
Ranks = dict[str, tuple[int, list[tuple[str, float]]]]  # see ``View.ranking``


@dataclass
class View:
    """One image, one caption, one plan, and the captions that compete.

    ``plan`` [N, W] float32 sums to the mass that is moved (1 unless unbalanced); ``weights`` [W] what every word has.
    ``ranking``: for ``transport`` and ``cosine`` the rank of this caption (1: nearest) among ``pool`` + 1, and the
    nearest captions with their distances; computed when it is first asked for, as the pool may have to be encoded.
    """

    image: np.ndarray  # [S, S, 3] uint8
    caption: str
    words: list[str]
    plan: np.ndarray
    weights: np.ndarray
    grid: tuple[int, int]  # rows and columns of places
    cost: float  # <P, C>
    converged: bool
    cosine: float  # 1 - cosine of the pooled features
    reg: float
    unbalanced: float | None
    pool: int
    rank: Callable[[], Ranks]  # makes the ranking
    title: str = ""

    @functools.cached_property
    def ranking(self) -> Ranks:
        return self.rank()

    def maps(self) -> np.ndarray:
        """Every word's mass over the places, as a share of what it has [W, rows, columns]."""
        return (self.plan / self.weights).T.reshape(len(self.words), *self.grid)

    @property
    def sharpest(self) -> int:
        """The word whose mass lies on the fewest places (smallest entropy of its column)."""
        share = self.plan / self.plan.sum(0).clip(1e-12)
        return int((-share * np.log(share.clip(1e-12))).sum(0).argmin())
