"""``config.json``: what a run is, what is refused, and what a run of before is compared with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from datasets import Dataset

from otclib import data, models
from otclib.defenses.base import Defense
from otclib.optim import KINDS, WARM
from otclib.runs import code, config_of, fingerprint, machine, write_json
from otclib.training.precision import CHOICES
from otclib.training.tracking import refuse_unknown

NEWER = {"optimizer": "muon", "betas": None, "warmup_steps": None}  # what older configurations do not say


def describe(
    pairs: Dataset, manifest: Dataset | None, method: Defense, batch_size: int, **given: Any
) -> dict[str, Any]:
    """Return what makes a run: the arguments that change it, and what identifies its pairs and its poison."""
    return given | {
        "options": dataclasses.asdict(method),
        "batch_size": min(batch_size, len(pairs)),
        "pairs": len(pairs),
        "fingerprint": fingerprint(pairs),
        "world": data.world(pairs),
        "poisoned": 0 if manifest is None else len(manifest),
        "attacks": [] if manifest is None else sorted(set(manifest["attack"])),
    }


def steps(config: dict[str, Any]) -> int:
    """Return how many steps an epoch has, if no pair is left out."""
    return max(1, config["pairs"] // config["batch_size"])


def warm(config: dict[str, Any]) -> float:
    """Return the share of the training in which the learning rate rises."""
    if config["warmup_steps"] is None:
        return WARM
    return config["warmup_steps"] / (config["options"]["epochs"] * steps(config))


def refuse(
    method: Defense, config: dict[str, Any], *, clean: str | Path | None, checkpoint_every: int, tracker: str
) -> None:
    """Raise an error for what cannot be trained, before anything is written."""
    if method.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {method.epochs}")
    if config["batch_size"] < 2 or config["pairs"] < 2:
        found = f"{config['pairs']} pairs, batch {config['batch_size']}"
        raise ValueError(f"contrastive training needs at least 2 pairs a batch, got {found}")
    if config["precision"] not in CHOICES:
        raise ValueError(f"precision is one of {', '.join(CHOICES)}, got {config['precision']!r}")
    if not config["lr"] > 0:
        raise ValueError(f"lr must be positive, got {config['lr']}")
    if config["optimizer"] not in KINDS:
        raise ValueError(f"optimizer is one of {', '.join(KINDS)}, got {config['optimizer']!r}")
    if config["warmup_steps"] is not None and config["warmup_steps"] < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {config['warmup_steps']}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1 step, got {checkpoint_every}")
    if method.REPAIRS and not models.has_weights(config["model"]):
        what = f"model must be its weights file, got {config['model']!r}"
        raise ValueError(f"{config['defense']} goes on from a trained model: {what}")
    if clean is not None and not (Path(clean) / "model.safetensors").exists():
        raise FileNotFoundError(f"the clean run to compare with is not finished, or not there: {clean}")
    refuse_unknown(tracker)


def found(out: Path, config: dict) -> dict:
    """Return the configuration of the run in ``out``, or an empty one; set ``config`` to the precision measured for it.

    Raises
    ------
    ValueError : the configuration differs from ``config``.
    """
    if not (out / "config.json").exists():
        return {}
    before = NEWER | config_of(out)
    before["world"] = data.world_of(before)
    if config["precision"] == "auto":
        config["precision"] = before["precision"]
    if differing := [k for k in config if before.get(k) != config[k]]:
        changes = ", ".join(f"{k} was {before.get(k)!r}, is {config[k]!r}" for k in differing)
        raise ValueError(f"{out} holds a run of another configuration: {changes}")
    return before


def write(
    out: Path, config: dict, before: dict, *, measured: str | None, clean: str | Path | None, processes: int
) -> None:
    """Write ``config.json``: the configuration, and the code and machine with which the run began."""
    made_with = {"code": code(), "machine": machine(), "processes": processes, "precision_measured": measured}
    made_with |= {key: before[key] for key in made_with if key in before}
    if made_with["code"] != code():
        made_with["resumed_with"] = code()
        print(f"{out.name}  begun with {made_with['code']}, resumed with {code()}", flush=True)
    made_with["clean"] = str(clean) if clean else None
    write_json(out / "config.json", config | made_with)
