"""The one training loop: every defence runs in it, every run folder comes out of it.

A run folder holds ``config.json`` (what was asked), ``manifest.parquet`` (what was planted), ``log.jsonl`` (one line
per epoch), ``pairs.parquet`` (for every pair: its distance, its fate, the caption it was given last),
``model.safetensors`` and ``metrics.json``, and with ``snapshots`` the weights after every epoch (``epochs/``). While it
is unfinished it also holds ``checkpoint.pt``, from which the same call goes on; calling it on a finished folder returns
at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from tqdm import std
from tqdm.auto import tqdm

from otclib import data, defenses, models, processes, results
from otclib.defenses import views
from otclib.models import Features
from otclib.optim import learning_rate, optimizers
from otclib.precision import CHOICES, choose
from otclib.runs import code, fingerprint, machine, write_json

# the side of an image begins at this share of its own, and has all of it from this share of the training on
SMALL, GROWN = 0.75, 1 / 3
View = Callable[[Tensor, int], Tensor]  # uint8 images [B, 3, H, W], side in pixels -> one view of each, float in [0, 1]


@dataclass
class Batch:
    """``images`` uint8 [B, 3, S, S], ``text`` token ids [B, L], ``row`` [B] in the table, ``caption`` [B] its row.

    ``trusted`` [B] bool: False for a pair that is left out; it comes with its own caption, as a negative for others.
    """

    images: Tensor
    text: Tensor
    row: Tensor
    caption: Tensor
    trusted: Tensor


class Towers(nn.Module):
    """Both encoders behind one forward, so that a distributed wrapper sees every gradient.

    ``precision`` is that of the matrix products and convolutions: ``fp32`` or ``bf16``; features come out in float32.
    """

    def __init__(self, model: nn.Module, precision: str = "fp32"):
        super().__init__()
        self.model, self.precision = model, precision

    def encode_image(self, images: Tensor) -> Features:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return models.encode_image(self.model, images)

    def forward(self, images: Tensor, text: Tensor) -> tuple[Features, Features]:
        return self.encode_image(images), models.encode_text(self.model, text)


class Trainer:
    """What a defence sees of the training: the towers, the table, who is paired with whom, and the clock."""

    LEFT_OUT = -1  # in caption_of: this image is pulled to no caption; with its own it stays among the negatives

    def __init__(
        self,
        pairs: Dataset,
        model: nn.Module,
        tokenizer,
        accelerator: Accelerator,
        *,
        seed: int = 0,
        lr: float = 4e-3,
        weight_decay: float = 0.1,
        precision: str = "fp32",
        grow: bool = False,
    ):
        self.pairs, self.model, self.device = pairs, model, accelerator.device
        self.towers = accelerator.prepare(Towers(model, precision))
        self.images = data.image_tensor(pairs, models.resize(model))
        self.text = tokenizer(pairs["caption"][:])
        self.caption_of = torch.arange(len(pairs))  # the row whose caption each image is trained with
        self.rng = torch.Generator().manual_seed(seed)
        self.epoch = 0
        self.optimizers = optimizers(model, lr, weight_decay)
        self.initial = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        self.started = 0  # the epoch in which the weights began
        self.ahead = 0  # epochs by which the learning rate's schedule runs ahead
        self.constant: float | None = None  # this share of the peak learning rate, instead of the schedule
        self.apart = False  # batches of pairs that are left out come first, and hold no others
        full = models.image_size(model)
        self.sides = (round(SMALL * full) if grow and models.takes_any_size(model) else full, full)
        self.size = full  # of the views that are drawn now
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), models.normalize(model)])

    def restart(self) -> None:
        """Begin anew from the initial weights, with fresh optimisers and schedule; the pairing stays."""
        self.model.load_state_dict(self.initial)
        for opt in self.optimizers:
            opt.state.clear()
        self.started = self.epoch

    def schedule(self, done: float, epochs: int, peak: float) -> None:
        """Set the learning rate and the images' size; ``done``: the share of this epoch that is over."""
        through = (self.epoch + done - self.started) / (epochs - self.started)
        rate = learning_rate(through + self.ahead / (epochs - self.started), peak)
        self.size = self.sides[through >= GROWN]
        if self.constant is not None:
            rate = self.constant * peak
        for opt in self.optimizers:
            for group in opt.param_groups:
                group["lr"] = rate * group["share"]

    @property
    def scale(self) -> Tensor:
        return self.model.logit_scale.exp()

    def view(
        self, images: Tensor, strong: bool = False, augment: View | None = None, side: int | None = None
    ) -> Tensor:
        """One augmented, normalised view of uint8 images; a strong one shows a smaller part, in any hue.

        ``side`` : of the view, in pixels; default that of this moment of the training.
        """
        augment = augment or (views.STRONG if strong else views.WEAK)
        return self.normalize(augment(images, side or self.size))

    def batches(self, size: int) -> Iterator[Batch]:
        order = torch.randperm(len(self.caption_of), generator=self.rng)
        left_out = self.caption_of[order] == self.LEFT_OUT
        groups = [order[left_out], order[~left_out]] if self.apart else [order]
        for group in groups:
            whole = min(size, len(group))  # what is left over at the end is dropped
            for rows in group.split(whole) if whole > 1 else ():
                if len(rows) == whole:
                    yield self.batch(rows)

    def batch(self, rows: Tensor) -> Batch:
        trusted = self.caption_of[rows] != self.LEFT_OUT
        caption = torch.where(trusted, self.caption_of[rows], rows)
        batch = Batch(self.images[rows], self.text[caption], rows, caption, trusted)
        return Batch(**{name: value.to(self.device) for name, value in vars(batch).items()})

    @torch.no_grad()
    def encode_images(
        self, rows: Tensor | None = None, augment: View | None = None, side: int | None = None
    ) -> Iterator[tuple[Tensor, Features]]:
        """Features of the images of ``rows`` (default: all, in order) as they are, or as ``augment`` shows them.

        ``side`` : in pixels, default the images' own.
        """
        self.model.eval()
        every = torch.arange(len(self.pairs)) if rows is None else rows
        for some in every.split(512):
            parts = []
            for images in self.images[some].split(64):  # what a layer makes of so many stays in the cache
                images = images.to(self.device)
                if augment:
                    seen = self.view(images, augment=augment, side=side)
                else:
                    whole = side is None or side == images.shape[-1]
                    seen = self.normalize(images if whole else tv.resize(images, [side, side], antialias=True))
                parts.append(self.towers.encode_image(seen))
            yield some, Features.cat(parts)
        self.model.train()

    @torch.no_grad()
    def encode_captions(self, rows: Tensor) -> Features:
        """Features of the own captions of ``rows``."""
        return self.encode_text(self.text[rows])

    @torch.no_grad()
    def encode_text(self, text: Tensor, size: int = 4096) -> Features:
        """Features of token ids [B, L], without gradients."""
        training = self.model.training
        self.model.eval()
        text = text.to(self.device)
        length = int(text.argmax(1).max()) + 1
        features = Features.cat([models.encode_text(self.model, t, length) for t in text.split(size)])
        self.model.train(training)
        return features


def train(
    pairs: Dataset,
    *,
    manifest: Dataset | None = None,
    defense: str = "otcclip",
    model: str = "small",
    out: str | Path,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int = 64,
    lr: float | None = None,
    weight_decay: float = 0.1,
    precision: str = "auto",
    watch: Dataset | None = None,
    clean: str | Path | None = None,
    snapshots: bool = False,
    progress: bool = True,
    live: Callable[[dict[str, list[dict]]], None] | None = None,
    tick: Callable[[float], None] | None = None,
    **options,
) -> Path:
    """Train a model on image-caption pairs under a defence, evaluate it, and return the run folder.

    A model that begins from random weights, and whose image tower takes any size, sees images of three quarters of
    their side in the first third of the training, and whole ones after it: an epoch then costs about half.

    Parameters
    ----------
    pairs : the table, poisoned or not, see ``otclib.data``.
    manifest : what was planted, see ``otclib.attacks``; only written down and watched, the defence never sees it.
    defense : by name. ``options`` are the defence's own fields.
    out : the run folder. Unfinished, it is resumed; finished, it is returned; of another configuration, an error.
    epochs, lr : default the defence's own. ``batch_size`` : pairs a step; ``weight_decay`` : AdamW's.
    seed : of weights, batches, views and pools.
    model : an open_clip name, to begin from random weights; or weights to go on from, see ``models.load`` (CleanCLIP
        fine-tunes a finished run, and needs them).
    precision : of the image tower's convolutions and products: ``fp32``, ``bf16``, or ``auto``, the one that is faster
        here by a short measurement (``otclib.precision``). ``config.json`` says what was chosen, and a resumed run
        keeps it.
    watch : labelled images on which zero-shot accuracy and attack success are followed epoch by epoch.
        Default for the embedded scenes: 500 of the ``val`` scenes that hold one object.
    clean : the finished run of an undefended model without poison, with which ``evaluate`` compares the attack.
    snapshots : write the weights after every epoch, ``epochs/01.safetensors`` and so on, in half precision, for the
        explorer's epoch slider (14 MB each of the small model).
    progress : print a line after every epoch, and in a terminal a bar over its batches.
    live : called with {name of the run: its log so far} after every epoch, for curves that grow (``workbook.Curves``).
        A notebook that is watched has a bar too.
    tick : called after every step with the share of the training that is done.

    Raises
    ------
    ValueError : before anything is written: unknown names or options, too few pairs, an ``out`` that is not writable
        or holds another run.
    FileNotFoundError : before anything is written: ``clean`` is not a finished run.
    NotImplementedError : more than one process was launched.
    RuntimeError, FloatingPointError : the defence left fewer than 2 pairs to train on; the loss is not finite.
    """
    from otclib import evaluation

    if epochs is not None:
        options["epochs"] = epochs
    method = defenses.load(defense, **options)
    if method.epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {method.epochs}")
    if batch_size < 2 or len(pairs) < 2:
        raise ValueError(
            f"contrastive training needs at least 2 pairs a batch, got {len(pairs)} pairs, batch {batch_size}"
        )
    lr = method.LR if lr is None else lr
    if precision not in CHOICES:
        raise ValueError(f"precision is one of {', '.join(CHOICES)}, got {precision!r}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    if method.REPAIRS and not models.has_weights(model):
        raise ValueError(f"{defense} goes on from a trained model: model must be its weights file, got {str(model)!r}")
    if clean is not None and not (Path(clean) / "model.safetensors").exists():
        raise FileNotFoundError(f"the clean run to compare with is not finished, or not there: {clean}")
    out = _writable(Path(out))
    config = {
        "defense": defense,
        "options": dataclasses.asdict(method),
        "model": str(model),
        "seed": seed,
        "batch_size": min(batch_size, len(pairs)),
        "lr": lr,
        "weight_decay": weight_decay,
        "precision": precision,
        "pairs": len(pairs),
        "fingerprint": fingerprint(pairs),
        "scenes": "objects" in pairs.column_names,
        "poisoned": 0 if manifest is None else len(manifest),
        "attacks": [] if manifest is None else sorted(set(manifest["attack"])),
    }
    found = {}
    if (out / "config.json").exists():
        found = json.loads((out / "config.json").read_text())
        if precision == "auto":  # it was measured when the run began
            config["precision"] = found["precision"]
        differing = [k for k in config if found.get(k) != config[k]]
        if differing:
            changes = ", ".join(f"{k} was {found.get(k)!r}, is {config[k]!r}" for k in differing)
            raise ValueError(f"{out} holds a run of another configuration: {changes}")
        if (out / "metrics.json").exists():
            return out
        if (out / "model.safetensors").exists() and len(
            results.log(out)
        ) == method.epochs:  # its evaluation was cut off
            evaluation.evaluate(out, clean=clean)
            (out / "checkpoint.pt").unlink(missing_ok=True)
            return out
    torch.manual_seed(seed)
    network, _, tokenizer = models.load(model, random=not models.has_weights(model))
    accelerator = Accelerator(mixed_precision="no")  # `precision` says it, not the user's launcher
    if accelerator.num_processes > 1:
        n = accelerator.num_processes
        raise NotImplementedError(f"a run trains in one process, {n} were launched: a loss compares pairs of one batch")
    network = network.to(accelerator.device)
    config["precision"], measured = choose(config["precision"], network)
    if measured and progress:
        print(f"{out.name}  {measured}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    made_with = {"code": code(), "machine": machine(), "precision_measured": measured}
    made_with |= {key: found[key] for key in made_with if key in found}  # as the run began
    if made_with["code"] != code():
        made_with["resumed_with"] = code()
        print(f"{out.name}  begun with {made_with['code']}, resumed with {code()}", flush=True)
    made_with["clean"] = str(clean) if clean else None
    write_json(out / "config.json", config | made_with)
    if manifest is not None:
        part = out / "manifest.parquet.part"
        manifest.to_parquet(str(part))
        os.replace(part, out / "manifest.parquet")

    how = {"lr": lr, "weight_decay": weight_decay, "precision": config["precision"]}
    how["grow"] = not models.has_weights(model)  # what is trained already knows images of full size
    trainer = Trainer(pairs, network, tokenizer, accelerator, seed=seed, **how)
    method.begin(trainer)
    planted = Planted(pairs, manifest)
    watch = watch if watch is not None else evaluation.default_watch(config)
    watcher = evaluation.Watcher(network, tokenizer, manifest, watch)
    log = _resume(out, trainer, method)
    visible = progress and _watched(live)
    while trainer.epoch < method.epochs:
        start, core = time.perf_counter(), time.process_time()
        line = {"epoch": trainer.epoch + 1, **method.begin_epoch(trainer)}
        line["seconds_matching"] = time.perf_counter() - start
        trainer.model.train()
        used = int((trainer.caption_of != trainer.LEFT_OUT).sum())
        if used < 2:
            raise RuntimeError(f"{defense} left {used} pairs to train on in epoch {trainer.epoch + 1}")
        steps, parts_of, count = max(1, len(pairs) // config["batch_size"]), {}, 0
        batches = trainer.batches(config["batch_size"])
        for batch in tqdm(batches, desc=f"{out.name} {line['epoch']}", total=steps, leave=False, disable=not visible):
            trainer.schedule(count / steps, method.epochs, lr)
            parts = method.loss(trainer, batch)
            loss = sum(parts.values())
            if not torch.isfinite(loss):
                raise FloatingPointError(f"loss is {float(loss)} in epoch {trainer.epoch + 1}: {parts}")
            for opt in trainer.optimizers:
                opt.zero_grad()
            accelerator.backward(loss)
            for opt in trainer.optimizers:
                opt.step()
            with torch.no_grad():
                network.logit_scale.clamp_(0, math.log(100))  # as in CLIP
            for name, value in parts.items():
                parts_of.setdefault(name, []).append(float(value.detach()))
            count += 1
            if tick is not None:
                tick((trainer.epoch + count / steps) / method.epochs)
        line |= {f"loss/{name}": sum(values) / len(values) for name, values in parts_of.items()}
        line["seconds"] = time.perf_counter() - start
        if accelerator.device.type == "cpu":
            line["core_seconds"] = time.process_time() - core  # the same whatever else the machine is doing
        line |= planted.look(trainer.caption_of) | watcher.look()
        if progress:
            print(_spoken(defense, line, method.epochs), flush=True)
        log.append(line)
        trainer.epoch += 1
        if snapshots:
            (out / "epochs").mkdir(exist_ok=True)
            file = out / "epochs" / f"{trainer.epoch:02d}.safetensors"
            models.save(network, file, models.name_of(model), torch.float16)
        _checkpoint(out, trainer, method, log)
        if live is not None:
            live({out.name: log})

    _write_pairs(out, trainer, method)
    method.finish(trainer, out)
    models.save(network, out / "model.safetensors", models.name_of(model))
    evaluation.evaluate(out, clean=clean)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return out


def train_each(
    pairs: Dataset,
    defense: Sequence[str],
    *,
    out: str | Path,
    progress: bool = True,
    live: Callable[[dict[str, list[dict]]], None] | None = None,
    retell: bool = False,
    **same,
) -> dict[str, Path]:
    """Train one run per defence in ``out/<defense>``, side by side, each in a process with its share of the cores.

    Small models gain little from a second core, two runs gain all of it. ``same`` is what ``train`` takes, and the same
    for all; finished runs are not trained again, and with ``retell`` say how they went. One bar shows how far all of
    them have got together. Returns {defence: run folder}.

    Raises
    ------
    ValueError : as ``train`` does, before anything is started. RuntimeError : a run died; the message says why.
    """
    for name in defense:
        defenses.load(name)
    runs = {name: _writable(Path(out) / name) for name in defense}
    finished = [name for name, run in runs.items() if (run / "metrics.json").exists()]
    for name in finished:
        train(pairs, progress=False, defense=name, out=runs[name], **same)  # refuses a run of another configuration
    same["precision"] = _one_precision(runs.values(), same, progress)
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(runs))
    missing = [name for name in runs if name not in finished]
    pipes = {name: context.Pipe(duplex=False) for name in missing}
    workers = [
        context.Process(
            target=_work, args=(os.getpid(), threads, pipes[n][1], pairs, dict(same, defense=n, out=runs[n]))
        )
        for n in missing
    ]
    done = dict.fromkeys(missing, 0.0)
    look = {"desc": " and ".join(missing), "bar_format": "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"}
    bar = tqdm(total=len(missing), leave=False, disable=not (progress and missing and _watched(live)), **look)
    said = {name: len(results.log(run)) if name in finished and not retell else 0 for name, run in runs.items()}
    try:
        with processes.starting():
            for worker in workers:
                worker.start()
        alive = True
        while alive:
            alive = any(worker.is_alive() for worker in workers)
            logs = {name: results.log(run) for name, run in runs.items()}
            new = {name: log[said[name] :] for name, log in logs.items() if len(log) > said[name]}
            for name, lines in new.items():
                epochs = json.loads((runs[name] / "config.json").read_text())["options"]["epochs"]
                for line in lines if progress else ():
                    bar.clear()
                    print(_spoken(name, line, epochs), flush=True)
                said[name] += len(lines)
            if new and live is not None:
                live(logs)
            for name, (receiver, _) in pipes.items():
                while receiver.poll():
                    message = receiver.recv()
                    if isinstance(message, str):
                        raise RuntimeError(message)
                    done[name] = message
            bar.n = sum(done.values())
            bar.refresh()
            time.sleep(0.5 if alive else 0)
        if any(worker.exitcode for worker in workers):
            raise RuntimeError(
                f"a run in {out} died (exit codes {[w.exitcode for w in workers]}); call again to resume it"
            )
    finally:
        bar.close()
        processes.stop(workers)
    return runs


def _one_precision(runs: Iterable[Path], same: dict, progress: bool) -> str:
    """What runs side by side are trained in: as asked, or as one of them has begun, or as is measured once for all."""
    asked, model = same.get("precision", "auto"), same.get("model", "small")
    begun = [json.loads(file.read_text())["precision"] for run in runs if (file := run / "config.json").exists()]
    if asked != "auto" or begun:
        return asked if asked != "auto" else begun[0]
    chosen, measured = choose("auto", models.load(model, random=not models.has_weights(model))[0])
    if progress and measured:
        print(measured, flush=True)
    return chosen


def _watched(live) -> bool:
    """Whether to show a progress bar."""
    return live is not None or sys.stderr.isatty()


def begin_worker(parent: int, threads: int) -> None:
    """In a new worker: it ends with its parent, and has its share of the cores."""
    processes.end_with(parent)
    std.tqdm.set_lock(threading.RLock())  # its own is a semaphore: Python would warn of it when the worker is killed
    torch.set_num_threads(threads)


def _work(parent: int, threads: int, sender, pairs: Dataset, arguments: dict) -> None:
    """In a worker: train, and send the share that is done after every step, or in words why it failed."""
    begin_worker(parent, threads)
    try:
        train(pairs, progress=False, tick=sender.send, **arguments)
    except Exception as error:
        sender.send(f"{arguments['defense']}: {type(error).__name__}: {error}")


def _spoken(defense: str, line: dict, epochs: int) -> str:
    """One epoch in one line."""
    words = [f"{defense} epoch {line['epoch']}/{epochs}", f"{line['seconds']:.0f} s"]
    words += [f"{k.removeprefix('loss/')} {v:.2f}" for k, v in line.items() if k.startswith("loss/")]
    for key, label in (("zero_shot_top1", "zero-shot"), ("attack_success_rate", "ASR"), ("poison_kept", "poison kept")):
        if line.get(key) is not None:
            words.append(f"{label} {100 * line[key]:.1f} %")
    if "targets_hit" in line:
        words.append(f"targets {line['targets_hit']}/{line['targets']}")
    return "  ".join(words)


def _writable(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise ValueError(f"cannot write a run to {out}: {parent} is not a writable folder")
    return out


class Planted:
    """Follows, epoch by epoch, which captions images get: the numbers that show a defence at work, or collapsing.

    ``clean_named``: share of the clean images in training whose caption names their true class; ``poison_named``: the
    same for planted images; ``distinct_captions``: different captions over images in training; ``clean_kept``,
    ``poison_kept``: share that is trained with its own caption; ``clean_left_out``, ``poison_left_out``: with none.
    """

    def __init__(self, pairs: Dataset, manifest: Dataset | None):
        source = {} if manifest is None else dict(zip(manifest["id"][:], manifest["source_label"][:]))
        self.captions = pairs["caption"][:]
        self.labels = pairs["label"][:]
        self.poison = torch.tensor([id in source for id in pairs["id"][:]])
        self.labelled = torch.tensor([label is not None for label in self.labels])

    def look(self, caption_of: Tensor) -> dict:
        used = caption_of != Trainer.LEFT_OUT
        own = caption_of == torch.arange(len(caption_of))

        def named(rows: Tensor) -> float | None:
            rows = (rows & self.labelled & used).nonzero()[:, 0].tolist()
            hits = sum(data.names(self.captions[caption_of[k]], self.labels[k]) for k in rows)
            return hits / len(rows) if rows else None

        def share(of: Tensor, rows: Tensor) -> float | None:
            return float(of[rows].float().mean()) if bool(rows.any()) else None

        return {
            "clean_named": named(~self.poison),
            "poison_named": named(self.poison),
            "clean_rematched_named": named(~self.poison & ~own),
            "clean_kept": share(own, ~self.poison),
            "poison_kept": share(own, self.poison),
            "clean_left_out": share(~used, ~self.poison),
            "poison_left_out": share(~used, self.poison),
            "distinct_captions": len(caption_of[used].unique()) / int(used.sum()),
        }


def _checkpoint(out: Path, trainer: Trainer, method: defenses.Defense, log: list[dict]) -> None:
    state = {
        "model": trainer.model.state_dict(),
        "optimizers": [opt.state_dict() for opt in trainer.optimizers],
        "started": trainer.started,
        "epoch": trainer.epoch,
        "caption_of": trainer.caption_of,
        "method": method.state(),
        "rng": trainer.rng.get_state(),
        "torch_rng": torch.get_rng_state(),
        "log": log,
    }
    part = out / "checkpoint.pt.part"
    torch.save(state, part)
    os.replace(part, out / "checkpoint.pt")
    part = out / "log.jsonl.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in log))
    os.replace(part, out / "log.jsonl")


def _resume(out: Path, trainer: Trainer, method: defenses.Defense) -> list[dict]:
    if not (out / "checkpoint.pt").exists():
        return []
    state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    trainer.model.load_state_dict(state["model"])
    for opt, saved in zip(trainer.optimizers, state["optimizers"]):
        opt.load_state_dict(saved)
    method.restore(state["method"])
    trainer.started = state["started"]
    trainer.epoch, trainer.caption_of = state["epoch"], state["caption_of"]
    trainer.rng.set_state(state["rng"])
    torch.set_rng_state(state["torch_rng"])
    return state["log"]


def _fate(row: int, given: int) -> str:
    return "kept" if given == row else "left out" if given == Trainer.LEFT_OUT else "re-matched"


def _write_pairs(out: Path, trainer: Trainer, method) -> None:
    """Every pair at the end of training: its own caption's distance, and the caption that it was trained with."""
    distance = torch.cat(
        [method.distance(image, trainer.encode_captions(rows)).cpu() for rows, image in trainer.encode_images()]
    )
    ids = trainer.pairs["id"][:]
    given = trainer.caption_of.tolist()
    table = Dataset.from_dict(
        {
            "id": ids,
            "own_distance": distance.tolist(),
            "fate": [_fate(k, g) for k, g in enumerate(given)],
            "caption_from": [None if g == trainer.LEFT_OUT else ids[g] for g in given],
        }
    )
    part = out / "pairs.parquet.part"
    table.to_parquet(str(part))
    os.replace(part, out / "pairs.parquet")
