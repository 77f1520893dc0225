"""Zero-shot classification by prompts, and the pooled features that all measures use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from otclib import data, models
from otclib.models import Features, Tokenizer


@torch.no_grad()
def class_embeddings(
    model: nn.Module, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Return the prompt ensemble: per class the mean of the normalised prompts, normalised again [classes, D]."""
    each = pooled_text(model, tokenizer, [data.prompt(t, c) for c in classes for t in templates])
    each = each.view(len(classes), len(templates), -1)
    return torch.nn.functional.normalize(each.mean(1), dim=-1)


@torch.no_grad()
def classify(model: nn.Module, images: Tensor, embeddings: Tensor) -> Tensor:
    """Return the zero-shot class index of uint8 images [N, 3, S, S] -> [N]."""
    return (pooled(model, images) @ embeddings.T).argmax(1).cpu()


@torch.no_grad()
def pooled(model: nn.Module | Remembering, images: Tensor, size: int = 500) -> Tensor:
    """Return the pooled features of uint8 images [N, 3, S, S] -> [N, D], L2-normalised."""
    encode = model.pooled if isinstance(model, Remembering) else lambda chunk: _pooled_images(model, chunk)
    return torch.cat([encode(chunk) for chunk in images.split(size)])


class Remembering:
    """A model that computes the pooled features of the same images only once. Otherwise it acts as the model itself.

    Zero-shot classification, the z-score and the linear probe ask for the features of the same test images. The images
    are recognised by their content, so the callers need not know of each other. Use it while the weights are fixed.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.known: dict[bytes, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def pooled(self, images: Tensor) -> Tensor:
        """Return ``pooled`` of one chunk, from memory if it was computed before."""
        key = hashlib.blake2b(images.contiguous().numpy().data).digest()
        if key not in self.known:
            self.known[key] = _pooled_images(self.model, images)
        return self.known[key]


def pooled_text(model: nn.Module, tokenizer: Tokenizer, captions: Sequence[str], size: int = 4096) -> Tensor:
    text, device = tokenizer(list(captions)), next(model.parameters()).device
    return torch.cat([models.encode_text(model, chunk.to(device)).pooled for chunk in text.split(size)])


def encode(model: nn.Module, images: Tensor) -> Features:
    return models.encode_image(model, _normalized(model, images))


def _pooled_images(model: Any, images: Tensor) -> Tensor:
    """Return the ``pooled`` of ``encode`` without the cost of the token features."""
    images = _normalized(model, images).to(memory_format=torch.channels_last)
    return torch.nn.functional.normalize(model.encode_image(images).float(), dim=-1)


def _normalized(model: nn.Module, images: Tensor) -> Tensor:
    """Return uint8 images as the model's image tower takes them, on the model's device."""
    device = next(model.parameters()).device
    return models.normalize(model)(tv.to_dtype(images.to(device), torch.float32, scale=True))
