"""Features: what a tower returns for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tokenizer = Callable[[list[str]], Tensor]  # captions -> token ids [B, L]


@dataclass
class Features:
    """Features of a batch in the joint space, L2-normalised.

    ``pooled`` [B, D], ``tokens`` [B, T, D], ``mask`` [B, T] (True: a real token; every row has at least one).
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Features:
        return Features(self.pooled[rows], self.tokens[rows], self.mask[rows])

    def __len__(self) -> int:
        return len(self.pooled)

    def detach(self) -> Features:
        return Features(self.pooled.detach(), self.tokens.detach(), self.mask)

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        return Features(*(torch.cat([getattr(p, f) for p in parts]) for f in ("pooled", "tokens", "mask")))
