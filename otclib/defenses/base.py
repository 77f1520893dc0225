"""The interface of a defence, and the part of the training that it sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn

from otclib.models import Features
from otclib.ranks import ALONE, Ranks

LEFT_OUT = -1  # in ``caption_of``: the image is left out; it stays in the batches as a negative, with its own caption


class Augment(Protocol):
    """Random views; ``views.Views`` is one kind of them."""

    def draw(self, n: int) -> Any:
        """Return the random numbers of n views, which ``[rows]`` selects from."""

    def __call__(self, images: Tensor, size: int, draws: Any = None) -> Tensor:
        """Return one view of each uint8 image [B, 3, H, W]: float [B, 3, size, size] in [0, 1]."""


class Look(NamedTuple):
    """The label, the colour and the marker of a defence; the colours are safe for readers with colour blindness."""

    label: str
    colour: str | None = None  # None: the next colour of the figure, or grey
    marker: str = "o"


@dataclass
class Batch:
    """A batch of B pairs: ``text`` token ids [B, L], ``row`` [B] in the table, ``images`` uint8 [B, 3, S, S].

    ``caption_id`` [B] is the row whose caption the image is trained with. ``positive`` [B] bool is False for a pair
    that is left out; it has its own caption and serves as a negative for others.

    Of several processes each holds the images of its own part, ``ranks.own``, and everything else of the whole batch.
    """

    images: Tensor
    text: Tensor
    row: Tensor
    caption_id: Tensor
    positive: Tensor
    ranks: Ranks = ALONE

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        parts = (self.images, self.text, self.row, self.caption_id, self.positive)
        images, text, row, caption_id, positive = (part.to(device, non_blocking=True) for part in parts)
        return Batch(images, text, row, caption_id, positive, self.ranks)

    def few(self, n: int) -> Batch:
        """Return the batch of the first n pairs, or of all if it has fewer.

        Raises
        ------
        ValueError : the processes would not have equally many of them.
        """
        n = min(n, len(self))
        if n % self.ranks.count:
            raise ValueError(f"{n} pairs of a batch cannot be shared by {self.ranks.count} processes equally")
        images = self.images[: len(self.ranks.own(range(n)))]
        return Batch(images, self.text[:n], self.row[:n], self.caption_id[:n], self.positive[:n], self.ranks)


class Training(Protocol):
    """The part of the training that a defence sees and may use; ``otclib.training.Trainer`` implements it.

    The training may run in several processes (``otclib.ranks``). Then every process calls the defence with the same
    batches, draws and features, so that a defence need not know of it. Only what loops over the whole table, with
    ``encode_images``, sees a part of the rows, and puts the parts together by ``gather``.
    """

    pairs: Dataset
    text: Tensor  # token ids of every pair's own caption [N, L]
    caption_of: Tensor  # [N] the row whose caption an image is trained with, or LEFT_OUT; the defence may set it
    rng: torch.Generator  # for all random draws on the CPU
    device: torch.device
    epoch: int  # from 0
    started: int  # the epoch in which the weights began: 0, or that of the last restart
    size: int  # side of the views that are drawn now, in pixels
    sides: tuple[int, int]  # of the views at the beginning and at the end of the training
    towers: Any  # towers(views, text) -> (Features, Features) of the whole batch; towers(views) -> Features
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]

    @property
    def scale(self) -> Tensor: ...  # the inverse temperature of the contrastive loss

    @property
    def bias(self) -> Tensor | None: ...  # of a sigmoid loss, which some models are trained with

    def schedule(self, through: float) -> float: ...  # share of the peak learning rate

    def drop_words(self, text: Tensor, probability: float) -> Tensor: ...  # a view of captions, drawn from rng

    def normalize(self, images: Tensor) -> Tensor: ...

    def view(self, batch: Batch, augment: Augment | None = None, side: int | None = None) -> Tensor: ...

    def stored_images(self) -> Iterator[tuple[Tensor, Tensor]]: ...  # rows and uint8 images that are this process's

    def encode_images(
        self, rows: Tensor | None = None, augment: Augment | None = None, side: int | None = None
    ) -> Iterator[tuple[Tensor, Features]]: ...  # of the rows that are this process's

    def encode_captions(self, rows: Tensor) -> Features: ...

    def encode_text(self, text: Tensor) -> Features: ...

    def gather(self, parts: list[Tensor] | list[Features], n: int) -> Any: ...  # what n rows gave, in their order

    def restart(self) -> None: ...


@dataclass
class Defense:
    """A defence: its options are the fields, and its methods are called during training. Only ``loss`` is required."""

    epochs: int = 12

    LOOK: ClassVar[Look] = Look("a defence without a name")
    LR: ClassVar[float] = 4e-3  # peak learning rate of Muon; AdamW takes a quarter
    REPAIRS: ClassVar[bool] = False  # True: goes on from a trained model, on trusted pairs

    def begin(self, training: Training) -> None:
        """Prepare the defence; called once, before the first epoch or before a run is resumed."""

    def begin_epoch(self, training: Training) -> dict:
        """Decide every image's caption (``training.caption_of``); the returned values go into the log."""
        return {}

    def passes(self, training: Training, rows: Tensor) -> list[Tensor]:
        """Return the rows of an epoch (in random order) as groups; training takes the groups one after the other."""
        return [rows]

    def learning_rate(self, training: Training, through: float) -> float:
        """Return the share of the peak learning rate when the share ``through`` of the training is over."""
        return training.schedule(through)

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss of a batch; their sum is minimised."""
        raise NotImplementedError

    def finish(self, training: Training, out: Path) -> None:
        """Write the files that the run needs besides the model; called once, after the last epoch."""

    def state(self) -> dict:
        """Return what an interrupted run must save, as tensors and numbers."""
        return {}

    def restore(self, state: dict) -> None:
        """Restore what ``state`` returned."""

    def distance(self, image: Features, text: Features) -> Tensor:
        """Return the distance of every image to its own caption [B]: 1 - cosine of the pooled features."""
        return 1 - (image.pooled * text.pooled).sum(-1)
