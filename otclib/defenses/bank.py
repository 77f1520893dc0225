"""A bank of the latest features, in which nearest neighbours are looked up (RoCLIP, SafeCLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Bank:
    """A ring of ``size`` unit vectors; the oldest make room for the newest.

    ``legacy`` as lightly's memory bank, which RoCLIP and SafeCLIP use: it begins full of random vectors, and at the end
    of the ring what does not fit is dropped.
    """

    def __init__(self, size: int, legacy: bool = False):
        if size < 1:
            raise ValueError(f"a bank holds at least one feature, got {size}")
        self.size, self.legacy = size, legacy
        self.features: Tensor | None = None  # [at most size, D]
        self.next = 0

    def add(self, features: Tensor) -> None:
        """Remember features [B, D], detached; of more than ``size``, the last."""
        features = features.detach()[-self.size :]
        if self.features is None:
            self.features = features[:0]
            if self.legacy:
                self.features = F.normalize(torch.randn(self.size, features.shape[1], device=features.device), dim=-1)
        room = self.size - self.next
        if self.legacy and len(features) > room:
            features = features[:room]
        first, rest = features[:room], features[room:]
        self.features = torch.cat([self.features[: self.next], first, self.features[self.next + len(first) :]])
        self.features = torch.cat([rest, self.features[len(rest) :]])
        self.next = (self.next + len(features)) % self.size

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The feature of the largest cosine with every query [B, D] -> features [B, D], indices [B]."""
        if self.features is None or not len(self.features):
            raise RuntimeError("the bank is empty: nothing has been added to it yet")
        index = (queries.detach() @ self.features.T).argmax(1)
        return self.features[index], index

    def __len__(self) -> int:
        return 0 if self.features is None else len(self.features)

    def state(self) -> dict:
        return {"features": self.features, "next": self.next}

    def restore(self, state: dict) -> None:
        self.features, self.next = state["features"], state["next"]
