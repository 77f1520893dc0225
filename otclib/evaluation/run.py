"""Evaluate a run folder or any weights, and measure a few numbers after every epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from otclib import attacks, data, models
from otclib.data import probes
from otclib.evaluation.attack_success import Planted, attack_metrics, head_metrics, trigger_metrics
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
    """Return 500 labelled rows of the ``val`` split of the drawn set that a run has; None for other tables."""
    world = data.world_of(config)
    if world is None:
        return None
    val = data.load(world["name"], split="val", seed=config["seed"], **world["options"])
    rows = [k for k, label in enumerate(val["label"]) if label is not None][:500]
    return val.select(rows)


def labelled_rows(table: Dataset | None) -> Dataset | None:
    """Return the rows that have a label; None if none has."""
    if table is None:
        return None
    rows = [k for k, label in enumerate(table["label"][:]) if label is not None]
    return table.select(rows) if rows else None


def evaluate(
    run: str | Path,
    *,
    model: str | None = None,
    test: Dataset | None = None,
    val: Dataset | None = None,
    attack: Any = None,
    clean: str | Path | None = None,
    out: str | Path | None = None,
) -> dict:
    """Evaluate a finished run, or any weights; return a flat dict of metrics (None: not measurable here).

    Parameters
    ----------
    run : a run folder, or what ``models.load`` takes: a file of our weights, of open_clip's or of the CleanCLIP family.
    model : the open_clip name of the weights, if their file does not say it. ``RN50-quickgelu`` is OpenAI's RN50, which
        CleanCLIP, RoCLIP and SafeCLIP train.
    test : labelled images for zero-shot accuracy, attack success and the linear probe. Default for a run on a drawn
        set (``scenes``, ``emoji``, ``emoji-scenes``): its ``test`` split at the run's seed, of its default size.
    val : pairs for retrieval and plan grounding. Default for a run on a drawn set: its ``val`` split.
    attack : what the model is tested against, in any form that ``attacks.read`` takes: a manifest, or attacks alone.
        Default for a run: its own manifest. A targeted attack needs a manifest, which holds its images.
    clean : a model that was trained without poison, as a run folder or weights, to compare the attack with. Default
        for a run: the one that ``train`` was given, if it still exists.
    out : a JSON file for the metrics. Default for a run that is measured against its own attack: its ``metrics.json``.
        Otherwise nothing is written.

    Notes
    -----
    The keys of a run and of weights are:

    - ``zero_shot_top1``, of ``test_images`` images; the classes are those of ``test`` and the attacker's targets
    - ``attack_success_rate``, ``untriggered_target_rate``, ``triggered_top1`` (triggered images that are still called
      what they show), each of ``triggered_images`` images (those of another class than the target); of several
      backdoors those of the most successful one, which ``backdoor`` names, and ``attack_success_rate/<kind>`` with
      ``triggered_images/<kind>`` of each
    - ``targets_hit``, ``targets_right``, ``targets``, of a manifest; of several targeted attacks those of all, and
      ``targets_hit/<kind>`` and ``targets/<kind>``
    - ``backdoor_z_score``
    - with ``clean``: ``clean_model_rate``, ``clean_model_hits``, ``clean_model_triggered_top1``,
      ``clean_model_z_score``
    - ``image_to_text_recall_at_1``, ``_5``, ``_10`` and ``text_to_image_...``, of the ``val_pairs`` pairs of ``val``
    - ``plan_pointing_accuracy`` and the mass keys of ``grounding``, of ``val``, else of ``test``, if its words are
      located; ``located_words`` is their number

    Those of a run are also:

    - ``linear_probe/<set>`` on the drawn set or ``test``, on ``digits`` and on ``letters``, each tested on
      ``probe_images/<set>`` images
    - ``poison_auroc``, ``poison_recall``, ``poison_precision``, ``poison_kept``, and if several kinds of attack are
      planted also these four of each kind, such as ``poison_auroc/<kind>``; ``clean_kept``, ``poison_count/<kind>`` and
      ``poison_rate/<kind>``, see ``separation``
    - ``seconds_per_epoch`` and, on a CPU, ``core_seconds_per_epoch``
    - ``head_top1`` and ``head_attack_success_rate``, of cleanclip-supervised's head

    Raises
    ------
    FileNotFoundError : ``run`` is neither a finished run nor weights, or ``clean`` has no weights.
    ValueError : weights without images to judge them on, without a known architecture, or with code in their file; an
        unknown attack, or a targeted one without its manifest.
    """
    planted = None if attack is None else attacks.read(attack)
    if isinstance(planted, list) and any(isinstance(one, attacks.Targeted) for one in planted):
        raise ValueError("a targeted attack is measured on its images, which only a manifest holds: give the manifest")
    folder = Path(run)
    if folder.is_dir():
        if model is not None:
            raise ValueError(f"{run} is a run and knows its model, got model={model!r}")
        metrics = _of_run(folder, planted, test, val, clean)
        out = folder / "metrics.json" if out is None and planted is None else out
    else:
        metrics = _of_weights(run, model, planted, test, val, clean)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(out), metrics)
    return metrics


def _of_run(
    run: Path, asked: Planted, test: Dataset | None, val: Dataset | None, clean: str | Path | None
) -> dict[str, Any]:
    if not (run / "model.safetensors").exists():
        raise FileNotFoundError(f"{run} is not a finished run: it has no model.safetensors")
    config = json.loads((run / "config.json").read_text())
    if world := data.world_of(config):
        drawn = {"seed": config["seed"], **world["options"]}
        test = test if test is not None else data.load(world["name"], split="test", **drawn)
        val = val if val is not None else data.load(world["name"], split="val", **drawn)
    model, tokenizer = _loaded(_weights_of(run))
    manifest = Dataset.from_parquet(str(run / "manifest.parquet")) if (run / "manifest.parquet").exists() else None
    planted = manifest if asked is None else asked
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
        metrics |= _attacked(model, tokenizer, planted, test, images, clean)
        if (run / "head.safetensors").exists():
            head = run / "head.safetensors"
            metrics |= head_metrics(model, head, planted, test, images, metrics.get("backdoor"))
        own = world["name"] if world else "test"
        shown_there = test["group" if "group" in test.column_names else "label"]  # many labels of emoji occur once
        metrics |= _probed(model, own, images, np.array(shown_there))
    for name, labelled in probes.PROBES.items():
        metrics |= _probed(model, name, *labelled(models.image_size(model)))
    return metrics | _on_pairs(model, tokenizer, val, test)


def _of_weights(
    weights: str | Path,
    name: str | None,
    planted: Planted,
    test: Dataset | None,
    val: Dataset | None,
    clean: str | Path | None,
) -> dict[str, Any]:
    asked = _weights_of(weights, name)
    if test is None and val is None:
        raise ValueError(f"{weights} says nothing of its data: give labelled images as test, pairs as val, or both")
    labelled = labelled_rows(test)
    if labelled is None and (test is not None or planted is not None or clean is not None):
        raise ValueError(
            f"attacks are measured on labelled images, got {'none as' if test is None else 'no label in'} test"
        )
    model, tokenizer = _loaded(asked)
    metrics: dict[str, Any] = {"weights": str(weights), "model": models.name_of(asked)}
    if labelled is not None:
        images = data.image_tensor(labelled, models.resize(model))
        metrics |= _attacked(model, tokenizer, planted, labelled, images, clean, name)
    return metrics | _on_pairs(model, tokenizer, val, labelled)


def _weights_of(of: str | Path, name: str | None = None) -> str:
    """Return what ``models.load`` takes: for a run folder, or for weights of the architecture ``name``."""
    if Path(of).is_dir():
        return str(Path(of) / "model.safetensors")
    if Path(of).is_file():
        return str(of) if name is None else f"{name}:{of}"
    if ":" not in str(of):
        raise FileNotFoundError(f"{of} is not a finished run, and no file of weights")
    return str(of)


def _loaded(weights: str) -> tuple[Any, models.Tokenizer]:
    """Return a model that remembers its features, and its tokenizer."""
    network, _, tokenizer = models.load(weights)
    return Remembering(network.to(Accelerator(mixed_precision="no").device)), tokenizer


def _attacked(
    model: Any,
    tokenizer: models.Tokenizer,
    planted: Planted,
    test: Dataset,
    images: Tensor,
    clean: str | Path | None,
    name: str | None = None,
) -> dict[str, Any]:
    """Return accuracy and attack success of a model, and those of a ``clean`` one (see ``_weights_of``)."""
    metrics = attack_metrics(model, tokenizer, planted, test, images)
    shown = metrics.get("backdoor")
    metrics |= trigger_metrics(model, planted, images, shown)
    if clean is not None:
        other, words = _loaded(_weights_of(clean, name))
        if models.resize(other) != models.resize(model):
            images = data.image_tensor(test, models.resize(other))
        found = attack_metrics(other, words, planted, test, images, shown)
        found |= trigger_metrics(other, planted, images, shown)
        metrics |= {f"clean_model_{short}": found[key] for key, short in OF_A_CLEAN_MODEL.items() if key in found}
    return metrics


def _probed(model: Any, name: str, images: Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Return the linear probe's accuracy on a set, and the number of images of the half that it is tested on."""
    return {
        f"linear_probe/{name}": linear_probe(model, images, labels),
        f"probe_images/{name}": len(images) - len(images) // 2,
    }


def _on_pairs(model: Any, tokenizer: models.Tokenizer, val: Dataset | None, test: Dataset | None) -> dict[str, Any]:
    """Return retrieval on ``val``, and grounding on the first of both whose words are located."""
    metrics = {} if val is None else retrieval(model, tokenizer, val)
    for table in (val, test):
        if table is not None and {"words", "objects"} <= set(table.column_names):
            return metrics | grounding(model, tokenizer, table.select(range(min(GROUNDING_PAIRS, len(table)))))
    return metrics
