"""The one training loop: every defence runs in it, and it writes every run folder.

A run folder holds ``config.json`` (the configuration), ``manifest.parquet`` (what was planted), ``left_out.json`` (the
rows that could not be used, if there were any), ``log.jsonl`` (one line per epoch), ``pairs.parquet`` (for every pair:
its distance, its fate, the caption it was given last), ``model.safetensors`` and ``metrics.json``, and with
``snapshots`` the weights after every epoch (``epochs/``). An unfinished run folder also holds ``checkpoint.pt``, from
which the same call goes on, in the middle of an epoch, too. A call on a finished folder returns at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from otclib import defenses, evaluation, models
from otclib.data.images import MEMORY
from otclib.data.origin import left_out
from otclib.ranks import Ranks, average_gradients, join
from otclib.runs import log_of, write_json, write_table
from otclib.training import configuration
from otclib.training.checkpoint import alone, resume, writable, write_pairs
from otclib.training.epoch import begin, run
from otclib.training.journal import Journal
from otclib.training.precision import choose
from otclib.training.trainer import Trainer


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
    tracker: str = "tensorboard",
    # where images come from
    image_memory: int = MEMORY,
    workers: int | None = None,
    # where it goes
    out: str | Path,
    checkpoint_every: int = 1000,
    snapshots: bool = False,
    **options: Any,
) -> Path:
    """Train a model on image-caption pairs under a defence, evaluate it, and return the run folder.

    Of several processes (``torchrun``, ``accelerate launch``) each trains on its part of every batch, and all of them
    compute the loss of the whole batch: the run is the same as in one process, up to rounding.

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
    batch_size : pairs per step, of all processes together; ``weight_decay`` : of the matrices.
    optimizer, betas : see ``optim.optimizers``: ``muon``, or ``adamw`` as in the published codes.
    warmup_steps : in which the learning rate rises to its peak. Default: 5 % of the training's.
    seed : of weights, batches, views and pools.
    model : an open_clip name, to begin from random weights; or weights to go on from, see ``models.load`` (CleanCLIP
        fine-tunes a finished run, so it needs weights).
    precision : of the image tower's convolutions and products: ``fp32``, ``bf16``, or ``auto``, the one that is faster
        here by a short measurement (``training.precision``). ``config.json`` says which, and a resumed run keeps it.
    watch : labelled images on which zero-shot accuracy and attack success are measured after every epoch.
        Default for the drawn sets: 500 labelled images of their ``val`` split.
    clean : the finished run of an undefended model without poison, with which ``evaluate`` compares the attack.
    snapshots : write the weights after every epoch, ``epochs/01.safetensors`` and so on, in half precision, for the
        explorer's epoch slider (14 MB each of the small model).
    progress : print a line after every epoch, and in a terminal a bar over its batches.
    live : called with {name of the run: its log so far} after every epoch, for curves that grow (``workbook.Curves``).
        With ``live`` there is a progress bar outside a terminal too.
    tick : called after every step with the share of the training that is done.
    tracker : where curves can be watched: ``tensorboard`` (in ``out/tensorboard``), ``wandb``, ``mlflow`` or ``none``.
    image_memory : bytes. Images are decoded once if they fit into so many; else workers decode them in every epoch.
    workers : processes that decode; default one for each core, up to eight.
    checkpoint_every : steps after which the run is saved, besides the end of every epoch.

    Raises
    ------
    ValueError : unknown names or options, too few pairs, an ``out`` that is not writable or holds another run; raised
        before anything is written.
    FileNotFoundError : ``clean`` is not a finished run; raised before anything is written.
    NotImplementedError : gradient accumulation or sharded weights are asked for, see ``ranks.join``.
    RuntimeError : the defence left fewer than 2 pairs to train on.
    FloatingPointError : the loss is not finite. The message names the pairs of the batch.
    """
    if epochs is not None:
        options["epochs"] = epochs
    method, out = defenses.load(defense, **options), writable(Path(out))
    lr = lr if lr is not None else method.LR if optimizer == "muon" else method.LR / 4
    config = configuration.describe(
        pairs,
        manifest,
        method,
        batch_size,
        defense=defense,
        model=str(model),
        seed=seed,
        lr=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        betas=list(betas) if betas is not None else None,
        warmup_steps=warmup_steps,
        precision=precision,
    )
    configuration.refuse(method, config, clean=clean, checkpoint_every=checkpoint_every, tracker=tracker)
    before = configuration.found(out, config)
    if (out / "metrics.json").exists():
        return out
    accelerator, ranks = join()
    if config["batch_size"] % ranks.count:
        raise ValueError(f"a batch of {config['batch_size']} pairs cannot be shared by {ranks.count} processes equally")
    if (out / "model.safetensors").exists() and len(log_of(out)) == method.epochs:  # its evaluation was interrupted
        return _finished(out, clean, ranks)

    torch.manual_seed(seed)
    network, _, tokenizer = models.load(model, random=not models.has_weights(model))
    network = network.to(accelerator.device)
    chosen = choose(config["precision"], network) if ranks.first else ("", None)
    config["precision"], measured = ranks.same(chosen)
    if measured and progress and ranks.first:
        print(f"{out.name}  {measured}", flush=True)
    with alone(out) if ranks.first else contextlib.nullcontext():
        if ranks.first:
            configuration.write(out, config, before, measured=measured, clean=clean, processes=ranks.count)
            if manifest is not None:
                write_table(out / "manifest.parquet", manifest)
            if without := left_out(pairs):
                write_json(out / "left_out.json", without)
        trainer = Trainer(
            pairs,
            network,
            tokenizer,
            accelerator,
            ranks=ranks,
            grow=not models.has_weights(model),  # a trained model knows images of full size already
            warm=configuration.warm(config),
            image_memory=image_memory,
            workers=workers,
            **{key: config[key] for key in ("seed", "lr", "weight_decay", "optimizer", "betas", "precision")},
        )
        method.begin(trainer)
        log, epoch = resume(out, trainer, method)
        journal = Journal(
            out,
            trainer,
            method,
            log,
            accelerator,
            config=config,
            done=trainer.epoch * configuration.steps(config) + (epoch.step if epoch else 0),
            manifest=manifest,
            watch=watch,
            progress=progress,
            live=live,
            tick=tick,
            tracker=tracker,
            checkpoint_every=checkpoint_every,
            snapshots=snapshots,
        )
        wait = average_gradients(trainer.optimizers, ranks)
        while trainer.epoch < method.epochs:
            epoch = epoch or begin(trainer, method)
            line = run(trainer, method, epoch, config=config, bar=journal.bar, wait=wait, after=journal.step)
            trainer.epoch, epoch = trainer.epoch + 1, None
            journal.epoch(line)
        journal.close()

        write_pairs(out, trainer, method)
        if ranks.first:
            method.finish(trainer, out)
            models.save(network, out / "model.safetensors", models.name_of(model))
        return _finished(out, clean, ranks)


def _finished(out: Path, clean: str | Path | None, ranks: Ranks) -> Path:
    """Evaluate a trained run, and delete the checkpoint that it no longer needs."""
    if ranks.first:
        evaluation.evaluate(out, clean=clean)
        (out / "checkpoint.pt").unlink(missing_ok=True)
    return out
