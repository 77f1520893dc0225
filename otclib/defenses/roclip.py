"""RoCLIP: every few epochs, images are trained with the nearest caption of a pool instead of their own.

Yang, Gao, Mirzasoleiman, NeurIPS 2023 (arXiv 2303.06854); code: BigML-CS-UCLA/RoCLIP. Nearness is by pooled features.

    views     every image and caption is augmented, in every epoch
    match     in every ``every``-th epoch the contrastive loss pairs an image with the most similar caption of the pool;
              in the other epochs with its own caption
    pool      the features of the latest captions, ``pool`` times as many as there are pairs

If matching begins before the model knows anything, all images take the same few captions and the model collapses. On
12,000 pairs ``first = 0`` does this (zero-shot 2 % after 12 epochs). A million pairs make 2,000 steps before the first
matching.

The nearest captions are features of earlier steps, so in a matching epoch the text encoder learns nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from otclib import losses
from otclib.defenses.bank import Bank
from otclib.defenses.base import Batch, Defense, Look, Training
from otclib.defenses.views import published_view


@dataclass
class RoCLIP(Defense):
    """RoCLIP's matching. With ``legacy`` it does what the published code does where that is odd:

    - the pool is filled in matching epochs only, so a matching epoch begins with captions of ``every`` epochs ago, and
      the first one with random vectors; at the end of its ring the pool drops the captions that do not fit;
    - neighbours that are the same caption are negatives of each other;
    - views are crops of 8 to 100 % of the image;
    - the learning rate's schedule starts one epoch in, and rises again after its end.

    One thing differs even with ``legacy``: their views of captions are made once before training, by EDA. Ours are
    drawn anew.
    """

    every: int = 2  # K
    first: int = 4  # no matching before this many epochs
    pool: float = 0.02  # size of the pool, as a share of the pairs
    drop: float = 0.2  # share of words that a view of a caption loses
    legacy: bool = False

    LOOK: ClassVar[Look] = Look("RoCLIP", "#E69F00", "s")
    LR: ClassVar[float] = 2e-3  # published: a tenth of CLIP's; at 4e-3 two of four seeds (0, 12) hardly learned

    def __post_init__(self) -> None:
        if self.every < 1 or self.first < 0 or not 0 < self.pool <= 1 or not 0 <= self.drop < 1:
            raise ValueError(
                f"every is at least 1, first at least 0, pool lies in (0, 1] and drop in [0, 1), "
                f"got {self.every}, {self.first}, {self.pool}, {self.drop}"
            )

    def begin(self, training: Training) -> None:
        self.bank = Bank(max(1, round(self.pool * len(training.pairs))), self.legacy)
        self.view = published_view(self.legacy)

    def matches(self, epoch: int) -> bool:
        """Return whether this epoch (counted from 0) is a matching epoch."""
        return epoch >= self.first and (epoch + 1) % self.every == 0

    def begin_epoch(self, training: Training) -> dict:
        return {"matched": int(self.matches(training.epoch))}

    def learning_rate(self, training: Training, through: float) -> float:
        return training.schedule(through + self.legacy / self.epochs)

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        words = training.drop_words(batch.text, self.drop)
        image, text = training.towers(training.view(batch, augment=self.view), words)
        matching = self.matches(training.epoch)
        caption, same = text.pooled, batch.caption_id
        if matching and (self.legacy or len(self.bank)):
            if not len(self.bank):
                self.bank.add(text.pooled[:0])  # random vectors
            caption, same = self.bank.nearest(image.pooled)
        if matching or not self.legacy:
            self.bank.add(text.pooled)
        ids = None if self.legacy else same
        return {"contrastive": losses.contrastive(image.pooled, caption, training.scale, ids, bias=training.bias)}

    def state(self) -> dict:
        return self.bank.state()

    def restore(self, state: dict) -> None:
        self.bank.restore(state)
