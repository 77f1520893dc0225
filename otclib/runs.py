"""The run folder: read it, write it whole or not at all, and say with what it was made."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
from datasets import Dataset

from otclib.version import __version__


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1))


def write_table(path: Path, table: Dataset) -> None:
    """Write a table as parquet, under a temporary name first."""
    part = path.with_name(path.name + ".part")
    table.to_parquet(str(part))
    os.replace(part, path)


def fingerprint(pairs: Dataset) -> str:
    """A short hash of ids and captions, to tell one table from another."""
    digest = hashlib.sha256()
    for id, caption in zip(pairs["id"][:], pairs["caption"][:]):
        digest.update(f"{id}\t{caption}\n".encode())
    return digest.hexdigest()[:16]


def machine() -> str:
    """What a run is trained on, in words."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        capability = torch.backends.cpu.get_cpu_capability()
        name = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {capability}"
    return f"{name}, torch {torch.__version__}"


@functools.cache
def code() -> dict:
    """``version`` of otclib and ``commit`` of its checkout; None where it was installed without one.

    ``-modified`` after the commit: files of the package differed from it.
    """
    package = Path(__file__).resolve().parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD") if git("ls-files", "__init__.py") else None
        if commit and git("status", "--porcelain", "--untracked-files=no", "--", "."):
            commit += "-modified"
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {"version": __version__, "commit": commit}


def metrics_of(run: str | Path) -> dict:
    """``metrics.json`` of a run folder."""
    path = Path(run) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.json: it is not a finished run")
    return json.loads(path.read_text())


def config_of(run: str | Path) -> dict:
    """What was asked for: defence, its options, seed, learning rate, ... Options of older runs have today's names."""
    config = json.loads((Path(run) / "config.json").read_text())
    return config | {"options": today(config["options"])} if "options" in config else config


RENAMED = {"keep": "near_share", "own": "keep_near", "least": "min_safe"}  # options, and what they are called today


def today(options: dict) -> dict:
    """The options of a defence, as an older run or record names them, under today's names."""
    return {RENAMED.get(name, name): value for name, value in options.items()}


def log_of(run: str | Path) -> list[dict]:
    """One dict per epoch, of a run that is under way too; none before its first is over."""
    file = Path(run) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def seconds_until_safe(log: list[dict], before: float = 0.0, accuracy: float = 0.95, asr: float = 0.02) -> float | None:
    """Seconds of training until a model is accurate and safe, and stays so: training efficiency.

    That is the end of the first epoch from which on zero-shot accuracy is at least ``accuracy``, the attack success
    rate at most ``asr`` and no targeted image is hit, in every epoch (on the watched images). None: never.
    ``before``: seconds already spent, by CleanCLIP on the model that it cleans. On a CPU these are seconds of a core,
    which do not depend on what else the machine is doing.
    """

    def good(line: dict) -> bool:
        safe = (line.get("attack_success_rate") or 0) <= asr and not line.get("targets_hit")
        return line.get("zero_shot_top1", 0) >= accuracy and safe

    last_bad = max((k for k, line in enumerate(log) if not good(line)), default=-1)
    if last_bad + 1 == len(log):
        return None
    return before + seconds_of(log[: last_bad + 2])


def column(log: list[dict], key: str) -> list[float | None]:
    """One value of every epoch, to four digits; None where there is none."""
    return [None if line.get(key) is None else round(line[key], 4) for line in log]


def seconds_of(log: list[dict]) -> float:
    """Seconds of training: of a core where they were counted, else of the clock."""
    return sum(line.get("core_seconds", line["seconds"]) for line in log)
