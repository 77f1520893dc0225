"""One epoch: its batches in order, a step of the optimisers for each, and what a checkpoint in its middle holds."""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from otclib.defenses.base import LEFT_OUT, Batch, Defense
from otclib.training.trainer import Trainer


@dataclass
class Epoch:
    """An epoch under way; a checkpoint in its middle holds it.

    ``line`` : what the log says of it so far. ``order`` [N] : all rows in random order. ``step`` : steps that are done.
    ``sums`` : of the parts of the loss over these steps. ``seconds``, ``core_seconds`` : until now.
    """

    line: dict
    order: Tensor
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    core_seconds: float = 0.0


def begin(trainer: Trainer, method: Defense) -> Epoch:
    """Let the defence decide the captions of an epoch, and draw its order."""
    start, core = time.perf_counter(), time.process_time()
    line = {"epoch": trainer.epoch + 1, **method.begin_epoch(trainer)}
    trainer.caption_of = trainer.ranks.same(trainer.caption_of)
    used = int((trainer.caption_of != LEFT_OUT).sum())
    if used < 2:
        raise RuntimeError(
            f"{method.LOOK.label} left {used} of {len(trainer.caption_of)} pairs to train on in epoch "
            f"{trainer.epoch + 1}: so far the model cannot tell them apart. More pairs help, or more epochs before the "
            f"first matching; defense='clip' leaves none out"
        )
    line["seconds_matching"] = time.perf_counter() - start
    order = torch.randperm(len(trainer.caption_of), generator=trainer.rng)
    return Epoch(line, order, seconds=line["seconds_matching"], core_seconds=time.process_time() - core)


def run(
    trainer: Trainer,
    method: Defense,
    epoch: Epoch,
    *,
    config: dict[str, Any],
    bar: bool,
    wait: Callable[[], None],
    after: Callable[[Epoch, int, dict[str, Tensor], float], None],
) -> dict:
    """Train the rest of an epoch; return its line of the log: number, losses, seconds, and what the defence adds.

    Parameters
    ----------
    config : ``lr`` is the peak learning rate, ``batch_size`` that of all processes together.
    bar : show a progress bar.
    wait : returns when the gradients of all processes are averaged.
    after : called after every step with the epoch, the number of its steps, the parts of the loss, the learning rate.

    Raises
    ------
    FloatingPointError : the loss is not finite. The message names the pairs of the batch.
    """
    trainer.model.train()
    start, core = time.perf_counter() - epoch.seconds, time.process_time() - epoch.core_seconds
    plan = trainer.plan(epoch.order, config["batch_size"], functools.partial(method.passes, trainer))
    steps = len(plan)
    look: dict[str, Any] = {"desc": f"epoch {trainer.epoch + 1}", "leave": False, "disable": not bar}
    for batch in tqdm(trainer.batches(plan[epoch.step :]), initial=epoch.step, total=steps, **look):
        rate = config["lr"] * method.learning_rate(trainer, trainer.progress(epoch.step / steps, method.epochs))
        trainer.set_learning_rate(rate)
        parts = method.loss(trainer, batch)
        loss = functools.reduce(operator.add, parts.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(_not_finite(trainer, batch, parts, epoch.step))
        for opt in trainer.optimizers:
            opt.zero_grad()
        loss.backward()
        wait()
        for opt in trainer.optimizers:
            opt.step()
        with torch.no_grad():
            trainer.model.get_parameter("logit_scale").clamp_(0, math.log(100))  # as in CLIP
        for part, value in parts.items():
            epoch.sums[part] = epoch.sums.get(part, 0.0) + float(value.detach())
        epoch.step += 1
        epoch.seconds, epoch.core_seconds = time.perf_counter() - start, time.process_time() - core
        after(epoch, steps, parts, rate)
    line = epoch.line | {f"loss/{part}": total / steps for part, total in epoch.sums.items()}
    line["seconds"] = epoch.seconds
    if trainer.device.type == "cpu":
        line["core_seconds"] = trainer.ranks.sum(epoch.core_seconds)  # does not depend on the machine's other work
    return line


def _not_finite(trainer: Trainer, batch: Batch, parts: dict[str, Tensor], step: int) -> str:
    """Return what is known of a step whose loss is not finite: its parts, its pairs, and where the run goes on."""
    values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in parts.items())
    ids = ", ".join(trainer.pairs.select(batch.row.tolist())["id"])
    good = trainer.saved or "none yet"
    return (
        f"the loss is not finite in epoch {trainer.epoch + 1}, step {step + 1}: {values}; the last good checkpoint is "
        f"{good}; the pairs of the batch are {ids}"
    )
