"""The one training loop: every defence runs in it, and it writes every run folder.

A run folder holds ``config.json`` (the configuration), ``manifest.parquet`` (what was planted), ``log.jsonl`` (one line
per epoch), ``pairs.parquet`` (for every pair: its distance, its fate, the caption it was given last),
``model.safetensors`` and ``metrics.json``, and with ``snapshots`` the weights after every epoch (``epochs/``). An
unfinished run folder also holds ``checkpoint.pt``, from which the same call goes on. A call on a finished folder
returns at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from otclib import defenses, evaluation, models
from otclib.defenses.base import LEFT_OUT, Batch, Defense
from otclib.optim import KINDS
from otclib.runs import code, config_of, fingerprint, log_of, machine, write_json, write_table
from otclib.training.checkpoint import alone, resume, save, writable, write_pairs
from otclib.training.monitoring import Captions, spoken, watched
from otclib.training.precision import CHOICES, choose
from otclib.training.trainer import Trainer

NEWER = {"optimizer": "muon", "betas": None, "warmup_steps": None}  # what older configurations do not say


def train(
    pairs: Dataset,
    *,
    # what is trained
    manifest: Dataset | None = None,
    defense: str = "otcclip",
    model: str | Path = "small",
    # how
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float | None = None,
    weight_decay: float = 0.1,
    optimizer: str = "muon",
    betas: tuple[float, float] | None = None,
    warmup_steps: int | None = None,
    precision: str = "auto",
    # what is watched
    watch: Dataset | None = None,
    clean: str | Path | None = None,
    progress: bool = True,
    live: Callable[[dict[str, list[dict]]], None] | None = None,
    tick: Callable[[float], None] | None = None,
    # where it goes
    out: str | Path,
    snapshots: bool = False,
    **options: Any,
) -> Path:
    """Train a model on image-caption pairs under a defence, evaluate it, and return the run folder.

    If a model begins from random weights and its image tower takes any size, it sees images of three quarters of their
    side in the first third of the training, where an epoch costs about half. After that it sees images of full size.

    Parameters
    ----------
    pairs : the table, poisoned or not, see ``otclib.data``.
    manifest : what was planted, see ``otclib.attacks``. It is saved and used for measuring; the defence never sees it.
    defense : by name. ``options`` are the defence's own fields.
    out : the run folder. An unfinished run is resumed, a finished one is returned, and one of another configuration is
        an error.
    epochs, lr : default the defence's own; ``lr`` is the peak of Muon, and AdamW alone has a quarter of that default.
    batch_size : pairs per step; ``weight_decay`` : of the matrices.
    optimizer, betas : see ``optim.optimizers``: ``muon``, or ``adamw`` as in the published codes.
    warmup_steps : in which the learning rate rises to its peak. Default: 5 % of the training's.
    seed : of weights, batches, views and pools.
    model : an open_clip name, to begin from random weights; or weights to go on from, see ``models.load`` (CleanCLIP
        fine-tunes a finished run, so it needs weights).
    precision : of the image tower's convolutions and products: ``fp32``, ``bf16``, or ``auto``, the one that is faster
        here by a short measurement (``training.precision``). ``config.json`` says which, and a resumed run keeps it.
    watch : labelled images on which zero-shot accuracy and attack success are measured after every epoch.
        Default for the embedded scenes: 500 of the ``val`` scenes that hold one object.
    clean : the finished run of an undefended model without poison, with which ``evaluate`` compares the attack.
    snapshots : write the weights after every epoch, ``epochs/01.safetensors`` and so on, in half precision, for the
        explorer's epoch slider (14 MB each of the small model).
    progress : print a line after every epoch, and in a terminal a bar over its batches.
    live : called with {name of the run: its log so far} after every epoch, for curves that grow (``workbook.Curves``).
        With ``live`` there is a progress bar outside a terminal too.
    tick : called after every step with the share of the training that is done.

    Raises
    ------
    ValueError : unknown names or options, too few pairs, an ``out`` that is not writable or holds another run; raised
        before anything is written.
    FileNotFoundError : ``clean`` is not a finished run; raised before anything is written.
    NotImplementedError : more than one process was launched.
    RuntimeError : the defence left fewer than 2 pairs to train on.
    FloatingPointError : the loss is not finite. The message names the pairs of the batch.
    """
    if epochs is not None:
        options["epochs"] = epochs
    method = defenses.load(defense, **options)
    lr = (method.LR if optimizer == "muon" else method.LR / 4) if lr is None else lr
    _refuse(pairs, defense, method, model, batch_size, lr, optimizer, warmup_steps, precision, clean)
    out = writable(Path(out))
    config: dict[str, Any] = {
        "defense": defense,
        "options": dataclasses.asdict(method),
        "model": str(model),
        "seed": seed,
        "batch_size": min(batch_size, len(pairs)),
        "lr": lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "betas": list(betas) if betas is not None else None,
        "warmup_steps": warmup_steps,
        "precision": precision,
        "pairs": len(pairs),
        "fingerprint": fingerprint(pairs),
        "scenes": "objects" in pairs.column_names,
        "poisoned": 0 if manifest is None else len(manifest),
        "attacks": [] if manifest is None else sorted(set(manifest["attack"])),
    }
    found = _found(out, config)
    if (out / "metrics.json").exists():
        return out
    if (out / "model.safetensors").exists() and len(log_of(out)) == method.epochs:  # its evaluation was interrupted
        return _finished(out, clean)

    torch.manual_seed(seed)
    network, _, tokenizer = models.load(model, random=not models.has_weights(model))
    accelerator = Accelerator(mixed_precision="no")  # `precision` decides, and not the user's launcher
    if accelerator.num_processes > 1:
        n = accelerator.num_processes
        raise NotImplementedError(f"a run trains in one process, {n} were launched: a loss compares pairs of one batch")
    network = network.to(accelerator.device)
    config["precision"], measured = choose(config["precision"], network)
    if measured and progress:
        print(f"{out.name}  {measured}", flush=True)
    with alone(out):
        _write_config(out, config, found, measured, clean)
        if manifest is not None:
            write_table(out / "manifest.parquet", manifest)
        how: dict[str, Any] = {key: config[key] for key in ("seed", "lr", "weight_decay", "precision")}
        how |= {key: config[key] for key in ("optimizer", "betas")}
        if warmup_steps is not None:
            how["warm"] = warmup_steps / (method.epochs * max(1, len(pairs) // config["batch_size"]))
        how["grow"] = not models.has_weights(model)  # a trained model knows images of full size already
        trainer = Trainer(pairs, network, tokenizer, accelerator, **how)
        method.begin(trainer)
        watch = evaluation.default_watch(config) if watch is None else watch
        watcher = evaluation.Watcher(network, tokenizer, manifest, watch)
        captions = Captions(pairs, manifest)
        log = resume(out, trainer, method)
        visible = progress and watched(live)
        while trainer.epoch < method.epochs:
            line = _epoch(trainer, method, accelerator, config, name=out.name, visible=visible, tick=tick)
            line |= captions.look(trainer.caption_of) | watcher.look()
            if progress:
                print(spoken(defense, line, method.epochs), flush=True)
            log.append(line)
            trainer.epoch += 1
            if snapshots:
                (out / "epochs").mkdir(exist_ok=True)
                file = out / "epochs" / f"{trainer.epoch:02d}.safetensors"
                models.save(network, file, models.name_of(model), torch.float16)
            save(out, trainer, method, log)
            if live is not None:
                live({out.name: log})

        write_pairs(out, trainer, method)
        method.finish(trainer, out)
        models.save(network, out / "model.safetensors", models.name_of(model))
        return _finished(out, clean)


def _epoch(
    trainer: Trainer,
    method: Defense,
    accelerator: Accelerator,
    config: dict,
    *,
    name: str,
    visible: bool,
    tick: Callable[[float], None] | None,
) -> dict:
    """Train for one epoch; return its line of the log: number, losses, seconds, and what the defence adds."""
    start, core = time.perf_counter(), time.process_time()
    line = {"epoch": trainer.epoch + 1, **method.begin_epoch(trainer)}
    line["seconds_matching"] = time.perf_counter() - start
    trainer.model.train()
    used = int((trainer.caption_of != LEFT_OUT).sum())
    if used < 2:
        raise RuntimeError(f"{config['defense']} left {used} pairs to train on in epoch {trainer.epoch + 1}")
    steps = max(1, len(trainer.pairs) // config["batch_size"])
    parts_of: dict[str, list[float]] = {}
    batches = trainer.batches(config["batch_size"], functools.partial(method.passes, trainer))
    bar = tqdm(batches, desc=f"{name} {line['epoch']}", total=steps, leave=False, disable=not visible)
    for count, batch in enumerate(bar):
        through = trainer.progress(count / steps, method.epochs)
        trainer.set_learning_rate(config["lr"] * method.learning_rate(trainer, through))
        parts = method.loss(trainer, batch)
        loss = functools.reduce(operator.add, parts.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(_not_finite(trainer, batch, parts, count))
        for opt in trainer.optimizers:
            opt.zero_grad()
        accelerator.backward(loss)
        for opt in trainer.optimizers:
            opt.step()
        with torch.no_grad():
            trainer.model.get_parameter("logit_scale").clamp_(0, math.log(100))  # as in CLIP
        for part, value in parts.items():
            parts_of.setdefault(part, []).append(float(value.detach()))
        if tick is not None:
            tick((trainer.epoch + (count + 1) / steps) / method.epochs)
    line |= {f"loss/{part}": sum(values) / len(values) for part, values in parts_of.items()}
    line["seconds"] = time.perf_counter() - start
    if accelerator.device.type == "cpu":
        line["core_seconds"] = time.process_time() - core  # does not depend on the machine's other work
    return line


def _not_finite(trainer: Trainer, batch: Batch, parts: dict[str, Tensor], step: int) -> str:
    """Return what is known of a step whose loss is not finite: its parts, its pairs, and where the run goes on."""
    values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in parts.items())
    ids = ", ".join(trainer.pairs.select(batch.row.tolist())["id"])
    good = f"that of epoch {trainer.epoch}" if trainer.epoch else "none yet"
    return (
        f"the loss is not finite in epoch {trainer.epoch + 1}, step {step + 1}: {values}; the last good checkpoint is "
        f"{good}; the pairs of the batch are {ids}"
    )


def _refuse(
    pairs: Dataset,
    defense: str,
    method: Defense,
    model: str | Path,
    batch_size: int,
    lr: float,
    optimizer: str,
    warmup_steps: int | None,
    precision: str,
    clean: str | Path | None,
) -> None:
    """Raise an error for arguments that cannot be trained, before anything is written."""
    if method.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {method.epochs}")
    if batch_size < 2 or len(pairs) < 2:
        raise ValueError(
            f"contrastive training needs at least 2 pairs a batch, got {len(pairs)} pairs, batch {batch_size}"
        )
    if precision not in CHOICES:
        raise ValueError(f"precision is one of {', '.join(CHOICES)}, got {precision!r}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if optimizer not in KINDS:
        raise ValueError(f"optimizer is one of {', '.join(KINDS)}, got {optimizer!r}")
    if warmup_steps is not None and warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
    if method.REPAIRS and not models.has_weights(model):
        raise ValueError(f"{defense} goes on from a trained model: model must be its weights file, got {str(model)!r}")
    if clean is not None and not (Path(clean) / "model.safetensors").exists():
        raise FileNotFoundError(f"the clean run to compare with is not finished, or not there: {clean}")


def _found(out: Path, config: dict) -> dict:
    """Return the configuration of the run in ``out``, or an empty one; set ``config`` to the precision measured for it.

    Raises
    ------
    ValueError : the configuration differs from ``config``.
    """
    if not (out / "config.json").exists():
        return {}
    found = NEWER | config_of(out)
    if config["precision"] == "auto":
        config["precision"] = found["precision"]
    if differing := [k for k in config if found.get(k) != config[k]]:
        changes = ", ".join(f"{k} was {found.get(k)!r}, is {config[k]!r}" for k in differing)
        raise ValueError(f"{out} holds a run of another configuration: {changes}")
    return found


def _write_config(out: Path, config: dict, found: dict, measured: str | None, clean: str | Path | None) -> None:
    """Write ``config.json``: the configuration, and the code and machine with which the run began."""
    out.mkdir(parents=True, exist_ok=True)
    made_with = {"code": code(), "machine": machine(), "precision_measured": measured}
    made_with |= {key: found[key] for key in made_with if key in found}
    if made_with["code"] != code():
        made_with["resumed_with"] = code()
        print(f"{out.name}  begun with {made_with['code']}, resumed with {code()}", flush=True)
    made_with["clean"] = str(clean) if clean else None
    write_json(out / "config.json", config | made_with)


def _finished(out: Path, clean: str | Path | None) -> Path:
    """Evaluate a trained run, and delete the checkpoint that it no longer needs."""
    evaluation.evaluate(out, clean=clean)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return out
