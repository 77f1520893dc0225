"""What is written and shown while a run trains: checkpoints, the log, curves, snapshots, lines of text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from otclib import evaluation, models
from otclib.defenses.base import Defense
from otclib.training.checkpoint import save
from otclib.training.configuration import steps
from otclib.training.epoch import Epoch
from otclib.training.monitoring import Captions, spoken, watched
from otclib.training.tracking import EVERY, Tracker
from otclib.training.trainer import Trainer


class Journal:
    """The journal of a run. The first of several processes keeps it; in the others it does nothing but ``tick``.

    Its arguments are those of ``train``. ``log`` holds the line of every epoch that is over, ``done`` the steps so far.
    """

    def __init__(
        self,
        out: Path,
        trainer: Trainer,
        method: Defense,
        log: list[dict],
        accelerator: Accelerator,
        *,
        config: dict,
        done: int,
        manifest: Dataset | None,
        watch: Dataset | None,
        progress: bool,
        live: Callable[[dict[str, list[dict]]], None] | None,
        tick: Callable[[float], None] | None,
        tracker: str,
        checkpoint_every: int,
        snapshots: bool,
    ):
        self.out, self.trainer, self.method, self.log, self.config = out, trainer, method, log, config
        self.live, self.tick, self.checkpoint_every, self.snapshots = live, tick, checkpoint_every, snapshots
        self.first = trainer.ranks.first
        self.progress = progress and self.first
        self.bar = self.progress and watched(live)
        self.per_epoch = steps(config)
        if self.first:
            watch = evaluation.default_watch(config) if watch is None else watch
            self.watcher = evaluation.Watcher(trainer.model, trainer.tokenizer, manifest, watch)
            self.captions = Captions(trainer.pairs, manifest)
            self.curves = Tracker(accelerator, tracker, out, done)

    def step(self, epoch: Epoch, of: int, parts: dict[str, Tensor], rate: float) -> None:
        """Note a step: the epoch under way, ``of`` how many steps, the parts of its loss and the learning rate."""
        done = self.trainer.epoch + epoch.step / of
        number = round(done * self.per_epoch)
        if self.first and number % EVERY == 0:
            values = {f"loss/{part}": float(value.detach()) for part, value in parts.items()}
            self.curves.log(values | {"lr": rate}, number)
        if self.first and epoch.step % self.checkpoint_every == 0 and epoch.step < of:
            save(self.out, self.trainer, self.method, self.log, epoch)
        if self.tick is not None:
            self.tick(done / self.method.epochs)

    def epoch(self, line: dict) -> None:
        """Note an epoch that is over, whose line of the log is ``line``, and measure the model."""
        if not self.first:
            return
        line |= self.captions.look(self.trainer.caption_of) | self.watcher.look()
        if self.progress:
            print(spoken(self.config["defense"], line, self.method.epochs), flush=True)
        self.log.append(line)
        means = {key.replace("loss/", "loss_of_epoch/"): value for key, value in line.items()}
        self.curves.log(means, self.trainer.epoch * self.per_epoch)
        if self.snapshots:
            (self.out / "epochs").mkdir(exist_ok=True)
            file = self.out / "epochs" / f"{self.trainer.epoch:02d}.safetensors"
            models.save(self.trainer.model, file, models.name_of(self.config["model"]), torch.float16)
        save(self.out, self.trainer, self.method, self.log)
        if self.live is not None:
            self.live({self.out.name: self.log})

    def close(self) -> None:
        """Close the curves' files."""
        if self.first:
            self.curves.finish()
