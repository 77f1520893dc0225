"""SafeCLIP: train each modality by itself first, then images with captions, but only on pairs judged safe.

Yang, Gao, Mirzasoleiman, ICML 2024 (arXiv 2310.05862); code: BigML-CS-UCLA/SafeCLIP.

    warm-up   ``warmup`` epochs: images with images, captions with captions (nearest neighbours of a view, in a bank)
    slow      ``slow_epochs`` epochs: CLIP's loss on all pairs, at a small constant learning rate
    then      before every epoch, a mixture of two Gaussians is fitted to the cosines of all pairs; p is the posterior
              of the one with the larger mean. The first safe set is p >= ``posterior``; it grows by ``grow`` of all
              pairs an epoch, up to ``cap``: the pairs of the largest p. An epoch is one pass of the unimodal loss over
              the risky pairs, then one of CLIP's loss over the safe ones.

A planted pair contradicts what both modalities have learned by themselves, so its cosine rises late. The mixture can
also fail. After two slow epochs on seeds 0 and 11 both Gaussians lay over each other, and no posterior reached 0.9. So
there are three slow epochs, and ``min_safe``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from otclib import losses
from otclib.defenses.bank import Bank
from otclib.defenses.base import LEFT_OUT, Batch, Defense, Look, Training
from otclib.defenses.views import published_view
from otclib.models import Features


@dataclass
class SafeCLIP(Defense):
    """SafeCLIP's three phases. With ``legacy`` it does what the published code does where that is odd:

    - pairs are selected by the cosines of *augmented* images and captions;
    - CLIP's loss takes each direction from another pair of views: images of view 1 choose among captions of view 2,
      captions of view 1 among images of view 2, and the two cross-entropies are averaged;
    - views are crops of 8 to 100 % of the image; the bank begins full of random vectors;
    - the learning rate's schedule starts one epoch in (theirs also mixes two step counters).

    One thing differs even with ``legacy``: their views of captions are made once before training, by EDA. Ours are
    drawn anew.
    """

    epochs: int = 16
    warmup: int = 3  # epochs of the unimodal loss alone
    slow_epochs: int = 3
    slow: float = 0.3  # learning rate of the slow epochs, as a share of the peak
    posterior: float = 0.9
    min_safe: float = 0.15  # smallest first safe set, as a share of the pairs, if few reach ``posterior``
    grow: float = 0.05
    cap: float = 0.85
    bank: float = 0.02  # size of each bank, as a share of the pairs
    drop: float = 0.2  # share of words that a view of a caption loses
    legacy: bool = False

    LOOK: ClassVar[Look] = Look("SafeCLIP", "#009E73", "^")

    def __post_init__(self) -> None:
        if not 0 < self.posterior < 1 or not 0 <= self.grow <= 1 or not 0 < self.bank <= 1:
            raise ValueError(
                f"posterior lies in (0, 1), grow in [0, 1], bank in (0, 1], "
                f"got {self.posterior}, {self.grow}, {self.bank}"
            )
        if not 0 < self.min_safe <= self.cap <= 1:
            raise ValueError(f"0 < min_safe <= cap <= 1 must hold, got {self.min_safe}, {self.cap}")
        if self.warmup < 0 or self.slow_epochs < 0 or not self.slow > 0 or not 0 <= self.drop < 1:
            raise ValueError(
                f"warmup and slow_epochs are at least 0, slow is positive and drop in [0, 1), "
                f"got {self.warmup}, {self.slow_epochs}, {self.slow}, {self.drop}"
            )
        self.share: float | None = None  # of the pairs that are safe

    def begin(self, training: Training) -> None:
        size = max(1, round(self.bank * len(training.pairs)))
        self.images, self.captions = Bank(size, self.legacy), Bank(size, self.legacy)
        self.view = published_view(self.legacy)

    def begin_epoch(self, training: Training) -> dict:
        if not self.selecting(training):
            return {}
        p = posterior(self.similarity(training))
        if self.share is None:
            self.share = max(self.min_safe, float((p >= self.posterior).mean()))
        else:
            self.share = min(self.share + self.grow, self.cap)
        safe = safest(p, self.share)
        training.caption_of = torch.where(torch.from_numpy(safe), torch.arange(len(p)), LEFT_OUT)
        return {"safe": float(safe.mean()), "matched": 1}

    def selecting(self, training: Training) -> bool:
        """Return whether the warm-up and the slow phase are over, so that pairs are selected."""
        return training.epoch >= self.warmup + self.slow_epochs

    def learning_rate(self, training: Training, through: float) -> float:
        if self.warmup <= training.epoch < self.warmup + self.slow_epochs:
            return self.slow
        return training.schedule(through + self.legacy / self.epochs)

    def passes(self, training: Training, rows: Tensor) -> list[Tensor]:
        """Return the risky pairs first, for the unimodal loss, and then the safe ones."""
        risky = training.caption_of[rows] == LEFT_OUT
        return [rows[risky], rows[~risky]] if self.selecting(training) else [rows]

    def similarity(self, training: Training) -> np.ndarray:
        """Return the cosine of every pair [N]."""
        out, text = [], training.text
        if self.legacy:
            text = training.drop_words(text, self.drop)
        for rows, image in training.encode_images(augment=self.view if self.legacy else None):
            out.append((image.pooled * training.encode_text(text[rows]).pooled).sum(1).cpu())
        return training.gather(out, len(training.pairs)).double().numpy()

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        def views() -> tuple[Features, Features]:
            words = training.drop_words(batch.text, self.drop)
            return training.towers(training.view(batch, augment=self.view), words)

        image, text = views()
        if training.epoch < self.warmup or not batch.positive.any():
            other_image, other_text = views()
            parts = []
            for bank, first, second in (self.images, image, other_image), (self.captions, text, other_text):
                if not len(bank):  # the first batch finds itself, or (legacy) random vectors
                    bank.add(first.pooled[: 0 if self.legacy else None])
                parts.append(losses.one_way(second.pooled, bank.nearest(first.pooled)[0], training.scale))
                bank.add(first.pooled)
            return {"unimodal": (parts[0] + parts[1]) / 2}
        if not self.legacy:
            how: dict[str, Any] = {"same": batch.caption_id, "bias": training.bias}
            return {"contrastive": losses.contrastive(image.pooled, text.pooled, training.scale, **how)}
        other_image, other_text = views()
        forth = losses.one_way(image.pooled, other_text.pooled, training.scale)
        back = losses.one_way(text.pooled, other_image.pooled, training.scale)
        return {"contrastive": (forth + back) / 2}

    def state(self) -> dict:
        return {"share": self.share, "images": self.images.state(), "captions": self.captions.state()}

    def restore(self, state: dict) -> None:
        self.share = state["share"]
        self.images.restore(state["images"])
        self.captions.restore(state["captions"])


def posterior(similarity: np.ndarray) -> np.ndarray:
    """Return, for every similarity [N], the posterior of the Gaussian with the larger mean in a fitted mixture of two.

    Raises
    ------
    ValueError : fewer than two similarities, or one that is not finite.
    """
    similarity = np.asarray(similarity, dtype=np.float64).reshape(-1, 1)
    if len(similarity) < 2 or not np.isfinite(similarity).all():
        raise ValueError(f"a mixture of two needs at least 2 finite similarities, got {len(similarity)}")
    mixture = GaussianMixture(2, random_state=0).fit(similarity)
    return mixture.predict_proba(similarity)[:, mixture.means_[:, 0].argmax()]


def safest(p: np.ndarray, share: float) -> np.ndarray:
    """Return which pairs are in the ``share`` with the largest posterior p [N]: bool [N]. Ties are broken at random."""
    lots = np.random.default_rng(0).random(len(p))
    safe = np.zeros(len(p), dtype=bool)
    safe[np.lexsort((lots, -p))[: round(share * len(p))]] = True
    return safe
