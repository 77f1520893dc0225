"""Monitoring of a run: which image is given which caption, and one line per epoch."""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from torch import Tensor

from otclib import data, metrics
from otclib.defenses.base import LEFT_OUT

COLLAPSED = 0.1  # so few different captions over images: every caption is given to ten images or more


def watched(live: object) -> bool:
    """Return whether to show a progress bar."""
    return live is not None or sys.stderr.isatty()


def spoken(defense: str, line: dict, epochs: int) -> str:
    """Return one epoch's log as one line of text."""
    words = [f"{defense} epoch {line['epoch']}/{epochs}", f"{line['seconds']:.0f} s"]
    words += [f"{k.removeprefix('loss/')} {v:.2f}" for k, v in line.items() if k.startswith("loss/")]
    words += metrics.spoken(line)
    return "  ".join(words + (["COLLAPSED: a few captions are given to most images"] if line.get("collapsed") else []))


class Captions:
    """Measure after every epoch which captions images get. The numbers show whether a defence works or collapses.

    - ``clean_named``, ``poison_named``: share of the clean (planted) images in training whose caption names their true
      class; ``clean_rematched_named``: the same for the clean images that are re-matched.
    - ``distinct_captions``: different captions over images in training.
    - ``clean_kept``, ``poison_kept``: share that is trained with its own caption.
    - ``clean_left_out``, ``poison_left_out``: share that is left out.
    - ``collapsed`` (if it is so): so few different captions are in use that most images share one, see ``COLLAPSED``.
    """

    def __init__(self, pairs: Dataset, manifest: Dataset | None):
        source = {} if manifest is None else dict(zip(manifest["id"][:], manifest["source_label"][:]))
        self.labels = pairs["label"][:]
        self.labelled = torch.tensor([label is not None for label in self.labels])
        self.captions = pairs["caption"][:] if self.labelled.any() else []  # without labels nobody asks for them
        self.poison = torch.tensor([id in source for id in pairs["id"][:]])

    def look(self, caption_of: Tensor) -> dict:
        used = caption_of != LEFT_OUT
        own = caption_of == torch.arange(len(caption_of))

        def named(rows: Tensor) -> float | None:
            some = (rows & self.labelled & used).nonzero()[:, 0].tolist()
            hits = sum(data.names(self.captions[caption_of[k]], self.labels[k]) for k in some)
            return hits / len(some) if some else None

        def share(of: Tensor, rows: Tensor) -> float | None:
            return float(of[rows].float().mean()) if bool(rows.any()) else None

        distinct = len(caption_of[used].unique()) / int(used.sum())
        return {
            "clean_named": named(~self.poison),
            "poison_named": named(self.poison),
            "clean_rematched_named": named(~self.poison & ~own),
            "clean_kept": share(own, ~self.poison),
            "poison_kept": share(own, self.poison),
            "clean_left_out": share(~used, ~self.poison),
            "poison_left_out": share(~used, self.poison),
            "distinct_captions": distinct,
        } | ({"collapsed": 1} if distinct < COLLAPSED else {})
