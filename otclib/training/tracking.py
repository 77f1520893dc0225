"""Trackers: where a run's curves can be watched. TensorBoard by default, others by accelerate's trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from accelerate import Accelerator

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # and the package that each needs
EVERY = 10  # steps between two values of a curve


class Tracker:
    """The curves of a run: the losses and the learning rate every few steps, and every epoch's line of the log.

    Parameters
    ----------
    name : ``tensorboard`` writes into ``out/tensorboard``; ``wandb`` and ``mlflow`` take their settings from the
        environment; ``none`` tracks nothing. Where TensorBoard is not installed, nothing is tracked either.
    step : the number of steps that are done: an interrupted run's later values are replaced, and that one is kept.

    Raises
    ------
    ValueError : an unknown tracker, or one whose package is not installed.
    """

    def __init__(self, accelerator: Accelerator, name: str, out: Path, step: int):
        self.accelerator = accelerator
        if name == "none" or (name == "tensorboard" and not _installed(name)):
            return
        accelerator.log_with = [name]
        accelerator.project_configuration.logging_dir = str(out)
        about: dict[str, dict] = {"tensorboard": {"purge_step": step + 1}, "wandb": {"name": out.name}}
        project = "tensorboard" if name == "tensorboard" else "otclib"  # for TensorBoard, the name of its folder
        accelerator.init_trackers(project, init_kwargs={name: about.get(name, {})})

    def log(self, values: dict, step: int) -> None:
        """Show the numbers among ``values`` at a step."""
        if self.accelerator.trackers:
            self.accelerator.log({k: float(v) for k, v in values.items() if isinstance(v, (int, float))}, step=step)

    def finish(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def refuse_unknown(name: str) -> None:
    """Raise an error for a tracker that is not known or not installed."""
    if name not in (*TRACKERS, "none"):
        raise ValueError(f"tracker is one of {', '.join(TRACKERS)} or none, got {name!r}")
    if name not in ("tensorboard", "none") and not _installed(name):
        raise ValueError(f"tracker {name!r} was asked for, and its package is not installed: pip install {name}")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(TRACKERS[name]) is not None
