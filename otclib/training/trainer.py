"""``Trainer``: the part of the training that a defence sees, and the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from otclib import data, models
from otclib.defenses import views
from otclib.defenses.base import LEFT_OUT, Augment, Batch
from otclib.models import Features
from otclib.optim import WARM, one_cycle, optimizers

# images begin at this share of their side, and have their full side from this share of the training on
SMALL, GROWN = 0.75, 1 / 3


class Towers(nn.Module):
    """Both encoders in one ``forward``, so that a distributed wrapper sees every gradient.

    ``precision`` is that of the matrix products and convolutions: ``fp32`` or ``bf16``. Features are in float32.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32"):
        super().__init__()
        self.model, self.precision = model, precision

    def encode_image(self, images: Tensor) -> Features:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return models.encode_image(self.model, images)

    def forward(self, images: Tensor, text: Tensor) -> tuple[Features, Features]:
        return self.encode_image(images), models.encode_text(self.model, text)


class Trainer:
    """The part of the training that a defence sees: the towers, the table, the caption of every image, the epoch."""

    def __init__(
        self,
        pairs: Dataset,
        model: nn.Module,
        tokenizer: models.Tokenizer,
        accelerator: Accelerator,
        *,
        seed: int = 0,
        lr: float = 4e-3,
        weight_decay: float = 0.1,
        optimizer: str = "muon",
        betas: tuple[float, float] | None = None,
        warm: float = WARM,
        precision: str = "fp32",
        grow: bool = False,
    ):
        self.pairs, self.model, self.device = pairs, model, accelerator.device
        self.towers = accelerator.prepare(Towers(model, precision))
        self.images = data.image_tensor(pairs, models.resize(model))
        self.text = tokenizer(pairs["caption"][:])
        self.caption_of = torch.arange(len(pairs))  # the row whose caption each image is trained with
        self.rng = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.optimizers = optimizers(model, lr, weight_decay, optimizer, betas)
        self.warm = warm  # share of the training in which the learning rate rises
        self.initial = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        self.started = 0  # the epoch in which the weights began
        full = models.image_size(model)
        self.sides = (round(SMALL * full) if grow and models.takes_any_size(model) else full, full)
        self.size = full  # of the views that are drawn now
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

    def view(
        self, images: Tensor, strong: bool = False, augment: Augment | None = None, side: int | None = None
    ) -> Tensor:
        """Return one augmented, normalised view of uint8 images; a strong view shows a smaller part, in any hue.

        ``side`` : of the view, in pixels; default the present side of the training.
        """
        augment = augment or (views.STRONG if strong else views.WEAK)
        return self.normalize(augment(images, side or self.size))

    def batches(self, size: int, passes: Callable[[Tensor], list[Tensor]] | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch, in random order; ``passes`` makes groups of rows that follow each other."""
        order = torch.randperm(len(self.caption_of), generator=self.rng)
        for group in passes(order) if passes else [order]:
            whole = min(size, len(group))  # the incomplete batch at the end is dropped
            for rows in group.split(whole) if whole > 1 else ():
                if len(rows) == whole:
                    yield self.batch(rows)

    def batch(self, rows: Tensor) -> Batch:
        positive = self.caption_of[rows] != LEFT_OUT
        caption_id = torch.where(positive, self.caption_of[rows], rows)
        batch = Batch(self.images[rows], self.text[caption_id], rows, caption_id, positive)
        return Batch(**{name: value.to(self.device) for name, value in vars(batch).items()})

    @torch.no_grad()
    def encode_images(
        self, rows: Tensor | None = None, augment: Augment | None = None, side: int | None = None
    ) -> Iterator[tuple[Tensor, Features]]:
        """Yield rows and features of the images of ``rows`` (default all, in order), as they are or under ``augment``.

        ``side`` : in pixels, default the images' own.
        """
        self.model.eval()
        every = torch.arange(len(self.pairs)) if rows is None else rows
        for some in every.split(512):
            parts = []
            for images in self.images[some].split(64):  # the activations of so many stay in the cache
                images = images.to(self.device)
                if augment:
                    seen = self.view(images, augment=augment, side=side)
                else:
                    whole = side is None or side == images.shape[-1]
                    seen = self.normalize(images if whole else tv.resize(images, [side, side], antialias=True))
                parts.append(self.towers.encode_image(seen))
            yield some, Features.cat(parts)
        self.model.train()

    @torch.no_grad()
    def encode_captions(self, rows: Tensor) -> Features:
        """Return the features of the own captions of ``rows``."""
        return self.encode_text(self.text[rows])

    @torch.no_grad()
    def encode_text(self, text: Tensor, size: int = 4096) -> Features:
        """Return the features of token ids [B, L], without gradients."""
        training = self.model.training
        self.model.eval()
        text = text.to(self.device)
        length = int(text.argmax(1).max()) + 1
        features = Features.cat([models.encode_text(self.model, t, length) for t in text.split(size)])
        self.model.train(training)
        return features
