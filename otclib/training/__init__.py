"""The one training loop: every defence runs in it, and every run folder comes out of it."""

from otclib.training.loop import train
from otclib.training.side_by_side import train_each
from otclib.training.trainer import Batch, Towers, Trainer

__all__ = ["Batch", "Towers", "Trainer", "train", "train_each"]
