"""``View``: one image, one caption and one plan, as the panel and the page show them; and the sliders' values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from datasets import Dataset

REGS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
MARGINALS = (3.0, 1.0, 0.3, 0.1, 0.03)  # rho of the words
EXACT, NOWHERE = 0.0, -1  # on the sliders, which cannot hold None: every word gives all of its mass; no place is chosen
LAST = "last"  # the name of a finished run's final weights, and of a model that has no epochs
Ranks = dict[str, tuple[int, list[tuple[str, float]]]]  # see ``View.ranking``


@dataclass
class View:
    """One image, one caption, one plan, and the captions that compete.

    ``plan`` [N, W] float32 sums to the mass that is moved (1 unless unbalanced). ``weights`` [W] is the mass of every
    word. ``ranking`` has, for ``transport`` and ``cosine``, the rank of this caption (1: nearest) among ``pool`` + 1,
    and the nearest captions with their distances. It is computed at the first use, because that may encode the pool.
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
        """Return every word's mass over the places, as a share of the word's own mass [W, rows, columns]."""
        return (self.plan / self.weights).T.reshape(len(self.words), *self.grid)

    @property
    def sharpest(self) -> int:
        """The word whose mass lies on the fewest places (smallest entropy of its column)."""
        share = self.plan / self.plan.sum(0).clip(1e-12)
        return int((-share * np.log(share.clip(1e-12))).sum(0).argmin())


class Source(Protocol):
    """Where the panel and the page get their views from: an ``Explorer``."""

    checkpoints: dict[str, dict[str, str | Path]]  # {run: {epoch: weights}}
    pairs: Dataset
    pool: list[str]
    captions: list[str]

    def view(
        self,
        pair: int = 0,
        caption: str | None = None,
        *,
        reg: float = 0.1,
        unbalanced: float | None = None,
        run: str | None = None,
        epoch: str | None = None,
        top: int = 5,
    ) -> View: ...

    def choices(self, count: int = 12) -> list[tuple[str, int]]: ...

    def is_planted(self, pair: int) -> bool: ...

    def own_captions(self, pair: int) -> list[str]: ...
