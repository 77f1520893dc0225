"""Image towers: their preprocessing, and their pooled and token features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from otclib.data import Resize
from otclib.models.features import Features

MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def image_size(model: nn.Module) -> int:
    visual: Any = model.visual
    size = visual.image_size
    return size if isinstance(size, int) else size[0]


@torch.no_grad()
def takes_any_size(model: nn.Module) -> bool:
    """Return whether the image tower takes images smaller than its own, as convolutions with a pooled end do."""
    side, device = 3 * image_size(model) // 4, next(model.parameters()).device
    training = model.training
    try:
        encode_image(model.eval(), torch.zeros(1, 3, side, side, device=device))
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        model.train(training)
    return True


def preprocess(model: nn.Module) -> Callable:
    """Return ``resize``, then scale to [0, 1], then normalise: PIL or tensor [..., 3, H, W] -> float [..., 3, S, S]."""
    return v2.Compose([resize(model), v2.ToDtype(torch.float32, scale=True), normalize(model)])


def resize(model: nn.Module) -> Resize:
    """Return the step from an image to the pixels that the model sees, in training, evaluation and ``preprocess``.

    Size, interpolation and mode are those of the model's ``preprocess_cfg``. Without one they are CLIP's: bicubic,
    shorter side, centre.
    """
    said = getattr(model.visual, "preprocess_cfg", None) or {}
    return Resize(
        image_size(model),
        interpolation=said.get("interpolation") or "bicubic",
        mode=said.get("resize_mode") or "shortest",
        fill=said.get("fill_color") or 0,
    )


def normalize(model: nn.Module) -> v2.Normalize:
    return v2.Normalize(
        getattr(model.visual, "image_mean", None) or MEAN, getattr(model.visual, "image_std", None) or STD
    )


def encode_image(model: nn.Module, images: Tensor) -> Features:
    """Return the features of normalised images [B, 3, S, S]; tokens in reading order (row by row)."""
    visual: Any = model.visual
    images = images.to(memory_format=torch.channels_last)
    if hasattr(visual, "trunk"):  # timm
        pooled, tokens = _timm(visual, images)
    elif hasattr(visual, "attnpool"):  # ModifiedResNet
        pool = visual.attnpool
        grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        pooled = pool(grid)
        tokens = pool.c_proj(pool.v_proj(grid.flatten(2).transpose(1, 2)))  # (B, HW, D)
    else:  # (B, prefix + N, C)
        out = visual.forward_intermediates(images, indices=1, output_fmt="NLC", normalize_intermediates=True)
        pooled, tokens = out["image_features"], out["image_intermediates"][-1]
        if getattr(visual, "proj", None) is not None:
            tokens = tokens @ visual.proj
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return Features(F.normalize(pooled.float(), dim=-1), F.normalize(tokens.float(), dim=-1), mask)


def _timm(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    trunk = visual.trunk
    features = trunk.forward_features(images)
    pooled = visual.head(trunk.forward_head(features))
    prefix = getattr(trunk, "num_prefix_tokens", 0)
    if features.ndim == 4:  # (B, C, H, W), or (B, H, W, C) as in Swin
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        grid = features if channels_last else features.permute(0, 2, 3, 1)
        places = grid.flatten(1, 2)  # (B, HW, C)
        alone = places.reshape(-1, 1, 1, places.shape[-1])
        alone = alone if channels_last else alone.permute(0, 3, 1, 2)
    else:  # (B, prefix + N, C)
        places = features[:, prefix:]
        alone = places.reshape(-1, 1, places.shape[-1])
    tokens = visual.head(trunk.forward_head(alone)).view(*places.shape[:2], -1)
    return pooled, tokens
