"""CleanCLIP: fine-tune a poisoned model on clean pairs, with a loss for each modality by itself.

Bansal, Singhi, Yang, Yin, Grover, Chang, ICCV 2023 (arXiv 2303.03323); code: nishadsinghi/CleanCLIP.

    L = ``clip`` * L_CLIP + ``alone`` * L_SS,   L_SS = (CE(scale I I'^T) + CE(scale T T'^T)) / 2

I, T are features of images and captions as they are, and I', T' those of their augmented views. Targets are on the
diagonal. The contrastive loss alone does not remove the trigger, because clean pairs do not contain it. The unimodal
loss makes each modality rearrange its features.

    clean = otclib.data.load("scenes", seed=..., size=2000)
    otclib.train(clean, defense="cleanclip", model="runs/poisoned/clip/model.safetensors", out=...)

``cleanclip-supervised``, the paper's other method, trains the image encoder and a new linear head on labelled images.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from otclib import losses
from otclib.defenses.base import Batch, Defense, Look, Training
from otclib.defenses.views import AutoAugmented


@dataclass
class CleanCLIP(Defense):
    """CleanCLIP's two losses. With ``legacy`` the schedule starts one epoch in, as published, and skips its warm-up.

    Two things differ even with ``legacy``. Their views of captions are made once before training, by EDA; ours are
    drawn anew. They go on with the poisoned run's optimiser state; ours begins with a fresh one.
    """

    epochs: int = 10
    clip: float = 1.0  # weight of the contrastive loss
    alone: float = 1.0  # weight of the unimodal loss
    drop: float = 0.2  # share of words that the view of a caption loses
    legacy: bool = False

    LOOK: ClassVar[Look] = Look("CleanCLIP", "#CC79A7", "D")
    LR: ClassVar[float] = 1.5e-3
    REPAIRS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clip < 0 or self.alone < 0 or not self.clip + self.alone > 0 or not 0 <= self.drop < 1:
            raise ValueError(
                f"weights are at least 0, one is positive, and drop lies in [0, 1), "
                f"got clip {self.clip}, alone {self.alone}, drop {self.drop}"
            )

    def begin(self, training: Training) -> None:
        self.view = AutoAugmented()

    def learning_rate(self, training: Training, through: float) -> float:
        return training.schedule(through + self.legacy / self.epochs)

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image, text = training.towers(training.normalize(batch.images), batch.text)
        how: dict[str, Any] = {"same": batch.caption_id, "bias": training.bias}
        parts = {"contrastive": self.clip * losses.contrastive(image.pooled, text.pooled, training.scale, **how)}
        if self.alone:
            words = training.drop_words(batch.text, self.drop)
            other_image, other_text = training.towers(training.view(batch, augment=self.view), words)
            each = [
                losses.one_way(x.pooled, y.pooled, training.scale)
                for x, y in ((image, other_image), (text, other_text))
            ]
            parts["unimodal"] = self.alone * (each[0] + each[1]) / 2
        return parts


@dataclass
class CleanCLIPSupervised(Defense):
    """Train the image encoder and a linear head on labelled images; then the head classifies (``head.safetensors``).

    There is no ``legacy``, because only the evaluation of the published code is odd: it counts class 954 whatever the
    target is.
    """

    epochs: int = 10

    LOOK: ClassVar[Look] = Look("CleanCLIP, supervised", "#CC79A7", "d")
    LR: ClassVar[float] = 1e-3
    REPAIRS: ClassVar[bool] = True

    def begin(self, training: Training) -> None:
        labels = training.pairs["label"][:]
        if any(label is None for label in labels):
            unknown = sum(label is None for label in labels)
            raise ValueError(f"cleanclip-supervised trains on labelled images: {unknown} of {len(labels)} have none")
        self.classes = sorted(set(labels))
        self.label = torch.tensor([self.classes.index(label) for label in labels])
        width = training.encode_text(training.text[:1]).pooled.shape[1]
        self.head = nn.Linear(width, len(self.classes)).to(training.device)
        training.optimizers[-1].add_param_group({"params": self.head.parameters(), "weight_decay": 0.01, "share": 0.25})

    def loss(self, training: Training, batch: Batch) -> dict[str, Tensor]:
        image = training.towers(training.view(batch))
        logits = self.head(training.scale.detach() * image.pooled)
        return {"supervised": F.cross_entropy(logits, self.label[batch.row.cpu()].to(training.device))}

    def finish(self, training: Training, out: Path) -> None:
        part = out / "head.safetensors.part"
        state = {k: v.detach().cpu() for k, v in self.head.state_dict().items()}
        state["weight"] = state["weight"] * training.scale.item()
        save_file(state, str(part), metadata={"classes": "\n".join(self.classes)})
        os.replace(part, out / "head.safetensors")

    def state(self) -> dict:
        return self.head.state_dict()

    def restore(self, state: dict) -> None:
        self.head.load_state_dict(state)
