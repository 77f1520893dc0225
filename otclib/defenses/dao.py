"""DAO: train undefended, leave out the images whose features lie in sparse places, and train again on the others.

Huang, Erfani, Li, Ma, Bailey, ICLR 2025 (arXiv 2502.01385); code: HanxunH/Detect-CLIP-Backdoor-Samples (024f076). The
score compares an image's density with that of its neighbours; it is the dimensionality-aware outlier score.

    detect    ``detect`` epochs of CLIP's loss on all pairs, with the learning rate of a whole training
    filter    score every image (``dao``), leave out the ``drop_share`` with the highest scores, forget the weights
    train     the other epochs of CLIP's loss on what is left

The published code scores, with k = 16. The paper also trains on CC3M without the tenth with the highest scores (a third
party's summary; its body was not read). Both trainings in one run, and the number of their epochs, are ours.

*The references decide.* The published code compares a random batch with itself, 128 images at a time, and its README
advises large batches. Here one random sample of the table is compared with all images. It can be too large: as soon as
more than k planted images that look alike are in it, they are a dense place, and no outliers any more. It can be too
small: if a clean image has fewer than k of its own class in it, all clean images are far from their neighbours. On
undefended runs of seed 10 (16 triggered pairs among 12,048, 42 classes) the AUROC was 0.20 with 128 references, 0.28
with 512, 0.64 with 1,024, 0.79 with 2,048 and 0.76 with 4,096. So the default is 2,048, and ours. It holds more than k
planted pairs if these are more than 0.8 % of the table.

The published code does three things otherwise. It looks up a neighbour that stands behind the image in the batch one
row too early. An image is its own first neighbour in the dimensionality, which is then at most k / -log(1e-4) = 1.7.
And the distance of the scored image is that of neighbour k + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from otclib.defenses.base import LEFT_OUT, Look, Training
from otclib.defenses.clip import Clip


def dao(features: Tensor, references: Tensor, k: int = 16, own: Tensor | None = None) -> Tensor:
    """Return how sparse the place of every image is, compared with those of its neighbours [N]; high: suspicious.

    N_k(x) are the k references that are nearest to x, r_i(x) is the distance of the i-th, and lid the local intrinsic
    dimensionality, by its maximum-likelihood estimate:

        dao(x)  =  mean over y in N_k(x) of  lid(y) log(r_k(x) / r_k(y))
        lid(y)  =  -1 / mean over i = 1 .. k of  log(r_i(y) / r_k(y))

    No image is its own neighbour. So that copies have finite scores, a distance counts as at least 1e-6, and a
    dimensionality as at most 1000.

    Parameters
    ----------
    features : of the images [N, D]. references : of the images that they are compared with [R, D].
    k : number of neighbours.
    own : [N] the index of the reference that is the image itself, or -1; default: no image is a reference.

    Raises
    ------
    ValueError : k is not between 0 and R.

    Examples
    --------
    Ten references on a line. The first image lies among them, the second far away.

    >>> line = torch.arange(10.0)[:, None]
    >>> print([f"{score:.2f}" for score in dao(torch.tensor([[4.6], [12.0]]), line, k=4).tolist()])
    ['-0.64', '2.02']
    """
    if not 0 < k < len(references):
        raise ValueError(f"k must lie between 0 and the number of references, got {k} and {len(references)}")
    to_references, among = torch.cdist(features, references), torch.cdist(references, references)
    if own is not None:
        to_references[own >= 0, own[own >= 0]] = torch.inf
    distance, neighbour = to_references.topk(k, largest=False)
    near = among.fill_diagonal_(torch.inf).topk(k, largest=False).values.clamp_min(1e-6)
    reach = near[:, -1]
    lid = -1 / (near / reach[:, None]).log().mean(1).clamp_max(-1e-3)
    return (lid[neighbour] * (distance[:, -1:].clamp_min(1e-6) / reach[neighbour]).log()).mean(1)


@dataclass
class DAO(Clip):
    """Filter once, then train: a pair that is left out is not in the batches any more, as a negative neither."""

    epochs: int = 16
    detect: int = 8  # epochs before the filter; at most half of all, so that the training after it is as long
    k: int = 16
    references: int = 2048  # images that every image is compared with; published: 128
    drop_share: float = 0.1  # share of the pairs that is left out

    LOOK: ClassVar[Look] = Look("DAO", "#56B4E9", "P")

    def __post_init__(self) -> None:
        if not 0 < self.k < self.references or self.detect < 1 or not 0 < self.drop_share < 1:
            raise ValueError(
                f"0 < k < references must hold, detect is at least 1, and drop_share lies in (0, 1), "
                f"got {self.k}, {self.references}, {self.detect}, {self.drop_share}"
            )
        self.detect = min(self.detect, max(1, self.epochs // 2))

    def begin(self, training: Training) -> None:
        if len(training.pairs) <= self.k:
            raise ValueError(f"{self.k} neighbours of each image need more pairs than that, got {len(training.pairs)}")

    def begin_epoch(self, training: Training) -> dict:
        if training.epoch != self.detect:
            return {}
        score = self.score(training)
        dropped = score.topk(round(self.drop_share * len(score))).indices
        training.caption_of = torch.arange(len(score)).index_fill(0, dropped, LEFT_OUT)
        training.restart()
        return {"dropped": len(dropped)}

    def score(self, training: Training) -> Tensor:
        """Return the score of every image [N]; the references are drawn anew."""
        n = len(training.pairs)
        rows = torch.randperm(n, generator=training.rng)[: self.references]
        references = training.gather([image.pooled for _, image in training.encode_images(rows)], len(rows))
        own = torch.full((n,), -1).index_copy(0, rows, torch.arange(len(rows)))
        parts = [
            dao(image.pooled, references, self.k, own[some].to(references.device)).cpu()
            for some, image in training.encode_images()
        ]
        return training.gather(parts, n)

    def passes(self, training: Training, rows: Tensor) -> list[Tensor]:
        return [rows[training.caption_of[rows] != LEFT_OUT]]

    def learning_rate(self, training: Training, through: float) -> float:
        """Return the share of the peak: each of the two trainings has a whole schedule."""
        return training.schedule(through * self.epochs / self.detect if training.epoch < self.detect else through)
