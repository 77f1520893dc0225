"""What a defence is to the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from otclib.models import Features


@dataclass
class Defense:
    """A defence is its options (the fields), and what it does at these moments. Only ``loss`` must be written."""

    epochs: int = 12

    LR: ClassVar[float] = 4e-3  # peak learning rate of Muon; AdamW takes a quarter
    REPAIRS: ClassVar[bool] = False  # True: goes on from a trained model, on pairs that one trusts

    def begin(self, trainer) -> None:
        """Once, before the first epoch or before a run is resumed."""

    def begin_epoch(self, trainer) -> dict:
        """Decide every image's caption (``trainer.caption_of``); what is returned goes into the log."""
        return {}

    def loss(self, trainer, batch) -> dict[str, Tensor]:
        """The parts of the loss of a batch; their sum is minimised."""
        raise NotImplementedError

    def finish(self, trainer, out: Path) -> None:
        """Once, after the last epoch: write what belongs to the run besides the model."""

    def state(self) -> dict:
        """What an interrupted run has to remember, as tensors and numbers."""
        return {}

    def restore(self, state: dict) -> None:
        """Take up what ``state`` returned."""

    def distance(self, image: Features, text: Features) -> Tensor:
        """Distance of every image to its own caption [B]: 1 - cosine of the pooled features."""
        return 1 - (image.pooled * text.pooled).sum(-1)
