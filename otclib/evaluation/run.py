"""Evaluate a run folder (everything in ``metrics.json``), and measure a few numbers after every epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from otclib import data, models
from otclib.data import probes
from otclib.evaluation.attack_success import attack_metrics, head_metrics, trigger_metrics
from otclib.evaluation.grounding import grounding
from otclib.evaluation.probing import linear_probe, retrieval, separation
from otclib.evaluation.zero_shot import Remembering
from otclib.runs import write_json

GROUNDING_PAIRS = 500  # val pairs on which plans are scored
OF_A_CLEAN_MODEL = {  # a metric, and its name after ``clean_model_``
    "attack_success_rate": "rate",
    "targets_hit": "hits",
    "triggered_top1": "triggered_top1",
    "backdoor_z_score": "z_score",
}


class Watcher:
    """Measure ``attack_metrics`` on a few labelled images after every epoch."""

    def __init__(self, model: nn.Module, tokenizer: models.Tokenizer, manifest: Dataset | None, watch: Dataset | None):
        watch = labelled_rows(watch)
        self.model, self.tokenizer, self.manifest, self.watch = model, tokenizer, manifest, watch
        self.images = None if watch is None else data.image_tensor(watch, models.resize(model))

    def look(self) -> dict:
        if self.watch is None or self.images is None:
            return {}
        self.model.eval()
        out = attack_metrics(self.model, self.tokenizer, self.manifest, self.watch, self.images)
        self.model.train()
        return out


def default_watch(config: dict) -> Dataset | None:
    """Return 500 one-object scenes of the val split for a run on scenes; None for other tables."""
    if not config["scenes"]:
        return None
    val = data.load("scenes", split="val", seed=config["seed"])
    rows = [k for k, label in enumerate(val["label"]) if label is not None][:500]
    return val.select(rows)


def labelled_rows(table: Dataset | None) -> Dataset | None:
    """Return the rows that have a label; None if none has."""
    if table is None:
        return None
    rows = [k for k, label in enumerate(table["label"][:]) if label is not None]
    return table.select(rows) if rows else None


def evaluate(
    run: str | Path, *, test: Dataset | None = None, val: Dataset | None = None, clean: str | Path | None = None
) -> dict:
    """Evaluate a finished run folder; write and return ``metrics.json``, a flat dict (None: not measurable here).

    Parameters
    ----------
    test : labelled images for zero-shot accuracy, attack success and the linear probe. Default for a run on the
        embedded scenes: their ``test`` split at the run's seed, as ``data.load`` draws it by default.
    val : pairs for retrieval and plan grounding. Default for a run on the embedded scenes: their ``val`` split.
    clean : the run folder of an undefended model that was trained without poison, to compare the attack with. Default:
        the one that ``train`` was given, if it still exists.

    Notes
    -----
    The keys are:

    - ``zero_shot_top1``
    - ``attack_success_rate``, ``untriggered_target_rate``, ``triggered_top1`` (triggered images that are still called
      what they show); of several backdoors those of the most successful one, which ``backdoor`` names
    - ``targets_hit``, ``targets_right``, ``targets``
    - ``backdoor_z_score``
    - with ``clean``: ``clean_model_rate``, ``clean_model_hits``, ``clean_model_triggered_top1``,
      ``clean_model_z_score``
    - ``linear_probe/<set>`` on ``scenes``, ``digits``, ``letters``
    - ``image_to_text_recall_at_1``, ``_5``, ``_10`` and ``text_to_image_...``
    - ``poison_auroc``, ``poison_recall``, ``poison_precision``, ``poison_kept``, ``clean_kept``,
      ``poison_count/<kind>`` and ``poison_rate/<kind>``, see ``separation``
    - ``plan_pointing_accuracy`` and the mass keys of ``grounding``
    - ``seconds_per_epoch`` and, on a CPU, ``core_seconds_per_epoch``
    - ``head_top1`` and ``head_attack_success_rate``, of cleanclip-supervised's head

    Raises
    ------
    FileNotFoundError : ``run`` is not finished, or ``clean`` has no weights.
    """
    run = Path(run)
    if not (run / "model.safetensors").exists():
        raise FileNotFoundError(f"{run} is not a finished run: it has no model.safetensors")
    config = json.loads((run / "config.json").read_text())
    if config["scenes"]:
        test = test if test is not None else data.load("scenes", split="test", seed=config["seed"])
        val = val if val is not None else data.load("scenes", split="val", seed=config["seed"])
    device = Accelerator(mixed_precision="no").device
    network, _, tokenizer = models.load(run / "model.safetensors")
    model: Any = Remembering(network.to(device))  # it stands in for the network
    size = models.image_size(network)
    manifest = Dataset.from_parquet(str(run / "manifest.parquet")) if (run / "manifest.parquet").exists() else None
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]

    if clean is None and config.get("clean") and (Path(config["clean"]) / "model.safetensors").exists():
        clean = config["clean"]

    metrics = {"defense": config["defense"], "seed": config["seed"], "epochs": len(log), "pairs": config["pairs"]}
    for key in ("seconds", "core_seconds"):
        if key in log[0]:
            metrics[f"{key}_per_epoch"] = sum(line[key] for line in log) / len(log)
    fates = Dataset.from_parquet(str(run / "pairs.parquet")) if (run / "pairs.parquet").exists() else None
    metrics |= separation(fates, manifest)
    test = labelled_rows(test)
    if test is not None:
        images = data.image_tensor(test, models.resize(model))
        metrics |= attack_metrics(model, tokenizer, manifest, test, images)
        shown = metrics.get("backdoor")
        metrics |= trigger_metrics(model, manifest, images, shown)
        if clean is not None:
            network, _, words = models.load(Path(clean) / "model.safetensors")
            other: Any = Remembering(network.to(device))
            found = attack_metrics(other, words, manifest, test, images, shown)
            found |= trigger_metrics(other, manifest, images, shown)
            metrics |= {f"clean_model_{name}": found[key] for key, name in OF_A_CLEAN_MODEL.items() if key in found}
        if (run / "head.safetensors").exists():
            metrics |= head_metrics(model, run / "head.safetensors", manifest, test, images, shown)
        own = "scenes" if config["scenes"] else "test"
        metrics[f"linear_probe/{own}"] = linear_probe(model, images, np.array(test["label"]))
    for name, labelled in probes.PROBES.items():
        metrics[f"linear_probe/{name}"] = linear_probe(model, *labelled(size))
    if val is not None:
        metrics |= retrieval(model, tokenizer, val)
        if "words" in val.column_names:
            metrics |= grounding(model, tokenizer, val.select(range(min(GROUNDING_PAIRS, len(val)))))
    write_json(run / "metrics.json", metrics)
    return metrics
