"""``Trainer``: the part of the training that a defence sees, and the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from otclib import losses, models
from otclib.data.images import MEMORY, Images
from otclib.defenses import views
from otclib.defenses.base import LEFT_OUT, Augment, Batch
from otclib.models import Features
from otclib.optim import WARM, one_cycle, optimizers
from otclib.ranks import ALONE, Ranks, share_batch_norm, share_weights

# images begin at this share of their side, and have their full side from this share of the training on
SMALL, GROWN = 0.75, 1 / 3


class Towers(nn.Module):
    """Both encoders. Called with views and token ids they return the features of the whole batch.

    Of several processes each encodes its part, and the parts are put together (``ranks.gather``).
    ``precision`` is that of the matrix products and convolutions: ``fp32`` or ``bf16``. Features are in float32.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32", ranks: Ranks = ALONE):
        super().__init__()
        self.model, self.precision, self.ranks = model, precision, ranks

    def encode_image(self, images: Tensor) -> Features:
        """Return the features of normalised images, of this process alone."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return models.encode_image(self.model, images)

    def forward(self, images: Tensor, text: Tensor | None = None) -> Any:
        """Return the features of the batch's images and, with ``text``, those of its captions.

        ``images`` : normalised views of this process's part [b, 3, S, S]. ``text`` : token ids of all captions [B, L].
        """
        image = gathered(self.encode_image(images), self.ranks)
        if text is None:
            return image
        own = models.encode_text(self.model, self.ranks.own(text), models.text_length(self.model, text))
        return image, gathered(own, self.ranks)


def gathered(part: Features, ranks: Ranks, n: int | None = None) -> Features:
    """Return the features of which every process holds its part; token sets have the same length everywhere."""
    return Features(*(ranks.gather(value, n) for value in (part.pooled, part.tokens, part.mask)))


class Trainer:
    """The part of the training that a defence sees: the towers, the table, the caption of every image, the epoch."""

    def __init__(
        self,
        pairs: Dataset,
        model: nn.Module,
        tokenizer: models.Tokenizer,
        accelerator: Accelerator,
        *,
        ranks: Ranks = ALONE,
        seed: int = 0,
        lr: float = 4e-3,
        weight_decay: float = 0.1,
        optimizer: str = "muon",
        betas: tuple[float, float] | None = None,
        warm: float = WARM,
        precision: str = "fp32",
        grow: bool = False,
        image_memory: int = MEMORY,
        workers: int | None = None,
    ):
        self.pairs, self.model, self.tokenizer = pairs, model, tokenizer
        self.device, self.ranks = accelerator.device, ranks
        full = models.image_size(model)
        self.sides = (round(SMALL * full) if grow and models.takes_any_size(model) else full, full)
        self.size = full  # of the views that are drawn now
        share_weights(model, ranks)
        share_batch_norm(model, ranks)
        self.towers = Towers(model, precision, ranks)
        self.images = Images(pairs, models.resize(model), image_memory, workers)
        self.text = tokens_of(pairs, tokenizer)
        self.caption_of = torch.arange(len(pairs))  # the row whose caption each image is trained with
        self.rng = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.saved = ""  # which checkpoint was written last, in words
        self.optimizers = optimizers(model, lr, weight_decay, optimizer, betas)
        self.warm = warm  # share of the training in which the learning rate rises
        self.initial = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        self.started = 0  # the epoch in which the weights began
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), models.normalize(model)])

    def restart(self) -> None:
        """Begin again from the initial weights, with fresh optimisers and schedule; every image keeps its caption."""
        self.model.load_state_dict(self.initial)
        for opt in self.optimizers:
            opt.state.clear()
        self.started = self.epoch

    def progress(self, done: float, epochs: int) -> float:
        """Return the share of the training that is over, since the weights began, and set the images' size by it.

        ``done`` : the share of this epoch that is over.
        """
        through = (self.epoch + done - self.started) / (epochs - self.started)
        self.size = self.sides[through >= GROWN]
        return through

    def schedule(self, through: float) -> float:
        """Return the share of the peak learning rate when the share ``through`` of the training is over."""
        return one_cycle(through, self.warm)

    def set_learning_rate(self, rate: float) -> None:
        """Give Muon this learning rate, and the other optimisers their share of it."""
        for opt in self.optimizers:
            for group in opt.param_groups:
                group["lr"] = rate * group["share"]

    @property
    def scale(self) -> Tensor:
        return self.model.get_parameter("logit_scale").exp()

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.model, "logit_bias", None)

    def drop_words(self, text: Tensor, probability: float) -> Tensor:
        """Return a view of captions, token ids [B, L], that lacks each word with a probability, but never all."""
        word, pad = models.word_places(self.model, text), models.padding(self.model)
        return losses.drop_words(text, probability, self.rng, word, pad)

    def view(self, batch: Batch, augment: Augment | None = None, side: int | None = None) -> Tensor:
        """Return one augmented, normalised view of a batch's images.

        ``side`` : of the view, in pixels; default the present side of the training.
        """
        augment = augment or views.WEAK
        draws = augment.draw(len(batch))  # for all of them, so that every process draws the same
        return self.normalize(augment(batch.images, side or self.size, self.ranks.own(draws)))

    def plan(self, order: Tensor, size: int, passes: Callable[[Tensor], list[Tensor]] | None = None) -> list[Tensor]:
        """Return the rows of every batch of an epoch; ``passes`` makes groups of rows that follow each other.

        A batch has ``size`` rows, or those of a smaller group; it is as large in every process. What is left of a group
        at its end is dropped.
        """
        out: list[Tensor] = []
        for group in passes(order) if passes else [order]:
            whole = min(size, len(group)) // self.ranks.count * self.ranks.count
            out += [rows for rows in group.split(whole) if len(rows) == whole] if whole > 1 else []
        return out

    def batches(self, plan: list[Tensor]) -> Iterator[Batch]:
        """Yield the batches of rows that ``plan`` lists."""
        for rows, images in zip(plan, self.images.batches([self.ranks.own(rows) for rows in plan])):
            positive = self.caption_of[rows] != LEFT_OUT
            caption_id = torch.where(positive, self.caption_of[rows], rows)
            batch = Batch(images, self.text[caption_id].long(), rows, caption_id, positive, self.ranks)
            yield batch.to(self.device)

    def stored_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows and images, uint8 [B, 3, S, S]: of several processes each sees its part of the table."""
        chunks = self.ranks.own(torch.arange(len(self.pairs))).split(512)
        yield from zip(chunks, self.images.batches(chunks))

    @torch.no_grad()
    def encode_images(
        self, rows: Tensor | None = None, augment: Augment | None = None, side: int | None = None
    ) -> Iterator[tuple[Tensor, Features]]:
        """Yield rows and features of the images of ``rows`` (default all, in order), as they are or under ``augment``.

        Of several processes each sees its part of the rows; ``gather`` puts together what becomes of them.
        ``side`` : in pixels, default the images' own.
        """
        self.model.eval()
        every = torch.arange(len(self.pairs)) if rows is None else rows
        draws = self.ranks.own(augment.draw(len(every))) if augment else None
        few = 64  # the activations of so many stay in the cache
        chunks, parts, done = self.ranks.own(every).split(few), [], 0
        for k, images in enumerate(self.images.batches(chunks)):
            images, place = images.to(self.device, non_blocking=True), slice(k * few, k * few + len(images))
            if augment:
                seen = self.normalize(augment(images, side or self.size, draws[place]))  # type: ignore[index]
            else:
                whole = side is None or side == images.shape[-1]
                seen = self.normalize(images if whole else tv.resize(images, [side, side], antialias=True))
            parts.append(self.towers.encode_image(seen))
            if len(parts) == 8 or k + 1 == len(chunks):
                yield self.ranks.own(every)[done : place.stop], Features.cat(parts)
                parts, done = [], place.stop
        self.model.train()

    def gather(self, parts: list[Tensor] | list[Features], n: int) -> Any:
        """Return what n rows gave, in their order: ``parts`` are what ``encode_images`` led to in this process."""
        if isinstance(parts[0], Features):
            return gathered(Features.cat(parts), self.ranks, n)
        part = torch.cat(parts)
        return self.ranks.gather(part.to(self.device), n).to(part.device)

    @torch.no_grad()
    def encode_captions(self, rows: Tensor) -> Features:
        """Return the features of the own captions of ``rows``."""
        return self.encode_text(self.text[rows])

    @torch.no_grad()
    def encode_text(self, text: Tensor, size: int = 4096) -> Features:
        """Return the features of token ids [B, L], without gradients."""
        training = self.model.training
        self.model.eval()
        text = text.long().to(self.device)
        length = models.text_length(self.model, text)
        features = Features.cat([models.encode_text(self.model, t, length) for t in text.split(size)])
        self.model.train(training)
        return features


def tokens_of(pairs: Dataset, tokenizer: models.Tokenizer) -> Tensor:
    """Return the token ids of every caption, int32 [N, L]."""
    captions = pairs.select_columns("caption")
    return torch.cat([tokenizer(captions[k : k + 4096]["caption"]).int() for k in range(0, len(captions), 4096)])
