"""The checkpoint from which an interrupted run goes on, and the table of pairs of a finished run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from filelock import FileLock, Timeout

from otclib import defenses
from otclib.defenses.base import LEFT_OUT, Defense
from otclib.runs import write_table, write_text
from otclib.training.epoch import Epoch
from otclib.training.trainer import Trainer


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep every other process from writing to a run folder, as long as this block or this process lives.

    Raises
    ------
    ValueError : another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{out} is in use: another process trains there") from None
    try:
        yield
    finally:
        lock.release()
        (out / ".lock").unlink(missing_ok=True)


def writable(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise ValueError(f"cannot write a run to {out}: {parent} is not a writable folder")
    return out


def save(out: Path, trainer: Trainer, method: defenses.Defense, log: list[dict], epoch: Epoch | None = None) -> None:
    """Write ``checkpoint.pt`` and ``log.jsonl``; ``epoch`` is the one under way, None between two of them.

    The new checkpoint is on the disk before it takes the place of the last one: a full disk, or the end of the process,
    leaves the last one whole.
    """
    state = {
        "model": trainer.model.state_dict(),
        "optimizers": [opt.state_dict() for opt in trainer.optimizers],
        "started": trainer.started,
        "epoch": trainer.epoch,
        "under_way": None if epoch is None else vars(epoch),
        "caption_of": trainer.caption_of,
        "method": method.state(),
        "rng": trainer.rng.get_state(),
        "torch_rng": torch.get_rng_state(),
        "log": log,
    }
    part = out / "checkpoint.pt.part"
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch says of a full disk: "unexpected pos"
        part.unlink(missing_ok=True)
        kept = f"the last one, {trainer.saved}, is kept" if trainer.saved else "there is none yet"
        raise OSError(f"the checkpoint of {out} could not be written ({error}); {kept}") from error
    os.replace(part, out / "checkpoint.pt")
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    trainer.saved = f"that of epoch {trainer.epoch}" if epoch is None else f"that of step {epoch.step} of this epoch"


def resume(out: Path, trainer: Trainer, method: defenses.Defense) -> tuple[list[dict], Epoch | None]:
    """Set the training to ``checkpoint.pt``, if it exists; return the log, and the epoch under way or None."""
    if not (out / "checkpoint.pt").exists():
        return [], None
    state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    trainer.model.load_state_dict(state["model"])
    for opt, saved in zip(trainer.optimizers, state["optimizers"]):
        opt.load_state_dict(saved)
    method.restore(state["method"])
    trainer.started = state["started"]
    trainer.epoch, trainer.caption_of = state["epoch"], state["caption_of"]
    trainer.rng.set_state(state["rng"])
    torch.set_rng_state(state["torch_rng"])
    trainer.saved = f"that of epoch {trainer.epoch}"
    epoch = None if state.get("under_way") is None else Epoch(**state["under_way"])
    if epoch is not None:
        trainer.saved = f"that of step {epoch.step} of this epoch"
    return state["log"], epoch


def _fate(row: int, given: int) -> str:
    return "kept" if given == row else "left out" if given == LEFT_OUT else "re-matched"


def write_pairs(out: Path, trainer: Trainer, method: Defense) -> None:
    """Write ``pairs.parquet``: every pair's own distance, and the caption that its image was given last."""
    distances = [method.distance(image, trainer.encode_captions(rows)).cpu() for rows, image in trainer.encode_images()]
    distance = trainer.gather(distances, len(trainer.pairs))
    if not trainer.ranks.first:
        return
    ids = trainer.pairs["id"][:]
    given = trainer.caption_of.tolist()
    table = Dataset.from_dict(
        {
            "id": ids,
            "own_distance": distance.tolist(),
            "fate": [_fate(k, g) for k, g in enumerate(given)],
            "caption_from": [None if g == LEFT_OUT else ids[g] for g in given],
        }
    )
    write_table(out / "pairs.parquet", table)
