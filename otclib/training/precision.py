"""Choose fp32 or bf16 by a short measurement of which is faster on this machine.

A processor without a bf16 unit is ten to fifty times slower in bf16. A processor with one is up to twice as fast. No
flag of the processor says how fast a given tower will be, so both are tried.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from otclib import models

CHOICES = ("fp32", "bf16", "auto")
WORTH = 0.85  # bf16 is chosen if it takes at most this share of fp32's seconds


def measure(model: nn.Module, batch_size: int = 16, repeats: int = 3) -> dict[str, float]:
    """Return the seconds of a step of the image tower, forward and backward, in each precision: best of ``repeats``.

    If the first step in bf16 takes more than three times as long as in fp32, no further one is tried.
    """
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).train()
    side = models.image_size(model)
    images = torch.randn(batch_size, 3, side, side, device=device, generator=torch.Generator(device).manual_seed(0))
    seconds: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        best = float("inf")
        for _ in range(repeats + 1):  # the first one is a warm-up
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                features = models.encode_image(trial, images)
            (features.pooled.sum() + features.tokens.sum()).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
            if best > 3 * seconds.get("fp32", best):
                break
        seconds[precision] = best
    return seconds


def choose(asked: str, model: nn.Module) -> tuple[str, str | None]:
    """Return the precision to train in and, for ``auto``, a line that says what was measured.

    Raises
    ------
    ValueError : ``asked`` is not one of ``CHOICES``.
    """
    if asked not in CHOICES:
        raise ValueError(f"precision is 'fp32', 'bf16' or 'auto', got {asked!r}")
    if asked != "auto":
        return asked, None
    seconds = measure(model)
    chosen = "bf16" if seconds["bf16"] <= WORTH * seconds["fp32"] else "fp32"
    said = f"precision {chosen}: a step of the image tower took {1000 * seconds['fp32']:.0f} ms in fp32, "
    return chosen, said + f"{1000 * seconds['bf16']:.0f} ms in bf16"
