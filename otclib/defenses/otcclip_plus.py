"""OTCCLIP with what we add: a defence to use, and each addition an option to switch off.

``otcclip`` re-assigns captions by a model that was trained on the planted pairs like on all others. Here no image
is given another caption. The transport distance judges the pairs, early and again, and what it keeps is trained on.

    warm-up   CLIP's loss and OTCCLIP's intra-modal one on all pairs, seen blurred, until it can judge (``ready``)
    judge     then before every ``every``-th epoch: count the rivals of every pair by OTCCLIP's distance, and keep the
              share of the pairs with the fewest, which grows from ``first`` to ``most``
    train     these losses on what is kept; the rest stays in the batches as negatives

Ours
----
*Rivals, from both sides.* With r(i) the share of a pool's captions that are nearer to image i than its own, and s(i)
the share of its images that are nearer to the caption than its own image, a pair has max(r(i), s(i)) rivals, because
the attacks differ. A targeted image is far from its caption as the image sees it: captions of what it shows are nearer.
A triggered image is far as the caption sees it: images of the caption's own class are nearer.

*Learned blurred, judged sharp* (``blur``). A model that was trained on a trigger finds a planted pair as good as any
other. But what it learned of the trigger is how it looked in training. So the images of the warm-up are blurred a
little: most objects survive that, and of a trigger the model learns the blurred image. In sharp images it then knows
the objects, and no longer the trigger. Later it has seen sharp triggers, too, if some pairs with one were kept. So the
rivals are counted on sharp and on blurred images, and the larger count holds.

*All judgements count.* A pair is judged by the sum of the rivals that all judgements have counted, each with a pool of
its own. The early ones are of a model that knows less of the objects, and of the triggers.

*A share, and not a threshold.* How many rivals a clean pair has depends on the set and on the epoch: where captions are
vague, most have many. A pair that is left out teaches the model nothing, so it stays far if it was planted, and comes
nearer if not. The share grows as SafeCLIP's safe set does.

*What is doubtful is still seen blurred* (``sharp``). The last pairs that are kept hold most of the planted ones that
are, and clean pairs from which there is much to learn. What an object looks like can be learned from blurred images,
what a fine trigger looks like cannot.

*When to judge* (``ready``). The first judgement comes when half of the pairs have fewer than this share of the pool as
rivals, and when half of the epochs are over at the latest. Before that the ranks are noise, and long after it a trigger
has been learned. No label and no knowledge of an attack is needed.

*Copies count as one* (``copies``). Images that are alike are judged together, by the mean of their pairs, and one of
them is drawn in each epoch: what is planted with many captions weighs no more than any other image. If the set has
several captions for a usual image, as many are drawn.

*A robust loss* (``q``) after the warm-up. A planted pair that is kept contradicts what its image shows, so its
probability p under the batch's softmax is small. Every pair is weighted by p^q (``losses.symmetric_cross_entropy``). In
the warm-up it only slows: the model knows nothing yet.

*No inter-modal transport loss* (``inter`` is 0). At OTCCLIP's 0.5 far less label-consistent poison comes through,
and all that the model can be used for gets worse: what it reads, finds and transfers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from otclib import matching
from otclib.defenses import copies
from otclib.defenses.base import LEFT_OUT, Augment, Batch, Look, Training
from otclib.defenses.otcclip import Alignment
from otclib.defenses.views import Draws, Views
from otclib.matching import TokenSets

SOLVED = 0.2  # share of the pool, the nearest by a bound, among which a pair is ranked: farther pairs are equally far


@dataclass
class OTCClipPlus(Alignment):
    """OTCCLIP's transport with our judgement; a comment beside each option says what it does."""

    epochs: int = 12
    inter: float = 0.0  # 0.5, as OTCCLIP has, keeps most label-consistent poison out, and costs accuracy
    warmup: int = 2  # epochs before the first judgement, at least
    ready: float = 0.065  # it comes when half of the pairs have a smaller share of the pool as rivals, or half-way
    pool: int = 128  # pairs that every pair is compared with; drawn afresh for every judgement
    first: float = 0.6  # share of the pairs that the first judgement keeps
    grow: float = 0.04  # more in every epoch
    most: float = 0.8  # at the most
    sharp: float = 0.7  # share of the pairs that is seen sharp once it is judged; what is kept beyond is seen blurred
    blur: float = 0.015  # sigma in the warm-up, of these, and of the second look, as a share of the side; 0: none
    q: float = 0.5  # robustness of the loss after the warm-up; 0: none
    alike: float = 0.95  # images with this correlation count as one; above 1: none do
    negatives: bool = True  # what is left out stays in the batches, as negatives only

    LOOK: ClassVar[Look] = Look("OTCCLIP plus (ours)", "#332288", "*")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("first", "most", "sharp", "ready")
        shares = {name: getattr(self, name) for name in names}
        if not all(0 < share <= 1 for share in shares.values()) or self.first > self.most or self.grow < 0:
            raise ValueError(
                f"{', '.join(names)} lie in (0, 1], first is not above most and grow not negative, "
                f"got {shares} and grow {self.grow}"
            )
        if not 0 <= self.q <= 1 or not self.blur >= 0 or self.pool < 1:
            raise ValueError(
                f"q lies in [0, 1], blur is not negative and pool at least 1, got {self.q}, {self.blur} and {self.pool}"
            )

    def begin(self, training: Training) -> None:
        """Find the images that are alike."""
        n = len(training.caption_of)
        self.start: int | None = None  # the epoch of the first judgement
        self.counted = torch.zeros(n)  # rivals, over all judgements
        self.near = torch.ones(n, dtype=torch.bool)  # which pairs are kept, by these
        self.doubtful = torch.ones(n, dtype=torch.bool)  # and which of them are seen blurred
        self.group, self.of_group = torch.arange(n), 1
        if self.alike <= 1:
            prints = training.gather([copies.fingerprints(images) for _, images in training.stored_images()], n)
            self.group = copies.groups(prints, self.alike)
            self.of_group = int(torch.bincount(self.group).median())

    # -- judgement ---------------------------------------------------------------------------------------------------

    def begin_epoch(self, training: Training) -> dict:
        """Decide which pairs this epoch is trained on."""
        line: dict[str, float] = {}
        if self.start is None and training.epoch >= self.warmup:
            pool = self.new_pool(training)
            line["rivals"] = float(self.rivals(training, pool, pool).median())
            if line["rivals"] <= self.ready or training.epoch >= self.epochs // 2:
                self.start = training.epoch
        if self.start is not None and (training.epoch - self.start) % self.every == 0:
            share = min(self.most, self.first + self.grow * (training.epoch - self.start))
            self.counted += self.rivals(training, self.new_pool(training))
            counted = copies.mean_of_each(self.group, self.counted)
            place = places(counted, training.rng)
            self.near = place < round(share * len(place))
            self.doubtful = self.near & (place >= round(self.sharp * len(place)))
            line["matched"] = 1
        drawn = copies.few_of_each(self.group, self.near, self.of_group, training.rng)
        training.caption_of = torch.where(drawn, torch.arange(len(drawn)), LEFT_OUT)
        return line

    def new_pool(self, training: Training) -> Tensor:
        """Return the rows of a new pool [P]."""
        return torch.randperm(len(training.caption_of), generator=training.rng)[: self.pool]

    def rivals(self, training: Training, pool: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the share of the pool that is nearer, max(r, s), of every pair of ``rows`` (default all).

        It is the larger one of two looks, at sharp and at blurred images.
        """
        looks = [blurred(share) for share in sorted({0.0, self.blur})]
        of_pool = [[image for _, image in self.coarse_images(training, pool, look)] for look in looks]
        images = [TokenSets.of(training.gather(parts, len(pool))) for parts in of_pool]
        captions, found = TokenSets.of(training.encode_captions(pool)), []
        how: dict[str, Any] = {"share": SOLVED, "reg": self.reg, "global_weight": self.global_weight}
        for seen in zip(*(self.coarse_images(training, rows, look) for look in looks)):
            text, ranks = TokenSets.of(training.encode_captions(seen[0][0])), []
            for (_, image), pool_images in zip(seen, images):
                ranks.append(matching.rank_own(image, text, captions, **how).own_rank)
                ranks.append(matching.rank_own(text, image, pool_images, **how).own_rank)
            found.append(torch.stack(ranks).amax(0).cpu())
        return training.gather(found, len(training.caption_of) if rows is None else len(rows))

    def passes(self, training: Training, rows: Tensor) -> list[Tensor]:
        return [rows] if self.negatives else [rows[training.caption_of[rows] != LEFT_OUT]]

    # -- alignment ---------------------------------------------------------------------------------------------------

    def views(self, batch: Batch) -> Augment:
        return Softened(doubtful=self.doubtful[batch.row.cpu()], share=self.blur)

    def robustness(self, training: Training) -> float:
        return self.q if self.start is not None else 0.0

    def state(self) -> dict:
        return {"start": self.start, "counted": self.counted, "near": self.near, "doubtful": self.doubtful}

    def restore(self, state: dict) -> None:
        self.start, self.counted = state["start"], state["counted"]
        self.near, self.doubtful = state["near"], state["doubtful"]


@dataclass(frozen=True)
class Softened(Views):
    """The weak views; those of ``doubtful`` [B] bool images are blurred by this ``share`` of their side."""

    doubtful: Tensor = field(kw_only=True)
    share: float = field(kw_only=True)

    def draw(self, n: int) -> Draws:
        sigma = torch.where(self.doubtful, self.share, 0.0)
        return replace(super().draw(n), sigma=sigma if sigma.any() else None)


def blurred(share: float) -> Views:
    """Return views of whole images, blurred by this share of their side; half of them are mirrored."""
    blur = (share, share) if share else None
    return Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), brightness=0.0, contrast=0.0, blur=blur)


def places(rivals: Tensor, rng: torch.Generator) -> Tensor:
    """Return the place of each pair by its rivals [N], 0 for the fewest: int [N]. Ties are broken at random.

    >>> places(torch.tensor([0.3, 0.0, 1.0, 0.1]), torch.Generator().manual_seed(0)).tolist()
    [2, 0, 3, 1]
    """
    lots = torch.randperm(len(rivals), generator=rng)
    return lots[rivals[lots].argsort(stable=True)].argsort()
