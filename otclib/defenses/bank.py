"""A bank of the latest features, in which nearest neighbours are looked up (RoCLIP, SafeCLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Bank:
    """A ring of ``size`` unit vectors; the oldest make room for the newest.

    ``legacy`` works as lightly's memory bank, which RoCLIP and SafeCLIP use: it begins full of random vectors, and at
    the end of the ring it drops the vectors that do not fit.
    """

    def __init__(self, size: int, legacy: bool = False):
        if size < 1:
            raise ValueError(f"a bank holds at least one feature, got {size}")
        self.size, self.legacy = size, legacy
        self.features: Tensor | None = None  # [size, D], of which the first ``filled`` are in use
        self.filled = self.next = 0

    def add(self, features: Tensor) -> None:
        """Store features [B, D], detached; if there are more than ``size``, only the last ones."""
        features = features.detach()[-self.size :]
        if self.features is None:
            self.features = features.new_zeros(self.size, features.shape[1])
            if self.legacy:
                self.features, self.filled = F.normalize(torch.randn_like(self.features), dim=-1), self.size
        self.features = self.features.to(features.device)  # a resumed run has them from a file, on the CPU
        if self.legacy:
            features = features[: self.size - self.next]
        where = (self.next + torch.arange(len(features), device=features.device)) % self.size
        self.features[where] = features
        self.filled = min(self.size, self.filled + len(features))
        self.next = (self.next + len(features)) % self.size

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stored feature with the largest cosine for every query [B, D]: features [B, D], indices [B]."""
        if self.features is None or not self.filled:
            raise RuntimeError("the bank is empty: nothing has been added to it yet")
        self.features = self.features.to(queries.device)
        index = (queries.detach() @ self.features[: self.filled].T).argmax(1)
        return self.features[index], index

    def __len__(self) -> int:
        return self.filled

    def state(self) -> dict:
        return {"features": self.features, "filled": self.filled, "next": self.next}

    def restore(self, state: dict) -> None:
        self.features, self.filled, self.next = state["features"], state["filled"], state["next"]
