"""``small``, the embedded model: a convolutional image tower and a one-layer text tower, registered in open_clip."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

# The default model: 64 px in, 8 x 8 = 64 visual tokens out. A convolutional tower learns scenes from 12,000 pairs, and
# a ViT of the same cost does not. Stride 8 keeps enough places for a transport plan to show something.
CONFIGS = {
    "small": {
        "embed_dim": 128,
        "vision_cfg": {"timm_model_name": "otclib_small", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 1},
    }
}


@register_model
def otclib_small(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """Return a residual network of timm's blocks: a 3x3 stem and three basic blocks, 64 px -> 8 x 8 x 96."""
    stages = ((1, 48, 2), (2, 96, 2))  # depth, channels, stride
    blocks = tuple(ByoBlockCfg(type="basic", d=d, c=c, s=s, gs=0, br=1.0) for d, c, s in stages)
    kwargs = {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
    net = ByobNet(
        ByoModelCfg(blocks=blocks, stem_chs=24, stem_type="3x3", stem_pool=None), zero_init_last=False, **kwargs
    )
    about: Any = net  # timm reads these, and declares neither
    about.default_cfg = about.pretrained_cfg = {"pool_size": (8, 8), "input_size": (3, 64, 64)}
    first = next(module for module in net.stem.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(edges_and_colours(len(first.weight)) * first.weight.std())
    return net


def edges_and_colours(count: int) -> Tensor:
    """Return filters [count, 3, 3, 3] for a first layer, at most 24: cosine patterns of brightness and of colour.

    Six patterns of brightness, up to the second order (the mean, edges, lines, corners), then the mean and the edges of
    each of two colours (I and Q of YIQ). Each comes with both signs, because a rectifier passes one of them, and has
    mean square 1.

    Nearly all random filters see the mean brightness, because patches of an image differ most in it. On the embedded
    scenes an epoch then passes before any object is known. Jordan's airbench (2024) whitens its first layer by
    patches of the training images. These patterns approximate that without looking at an image.
    """
    waves = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    luma, i, q = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.275, -0.321], [0.212, -0.523, 0.311]])
    edges = [(0, 0), (0, 1), (1, 0)]
    what = [(luma, at) for at in (*edges, (0, 2), (1, 1), (2, 0))] + [(colour, at) for at in edges for colour in (i, q)]
    patterns = [colour[:, None, None] * torch.outer(waves[down], waves[across]) for colour, (down, across) in what]
    return torch.stack([sign * x / x.square().mean().sqrt() for x in patterns for sign in (1, -1)])[:count]


def _register() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, config in CONFIGS.items():
            (Path(folder) / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)


_register()
