"""The run folder: read its files, write them whole or not at all, and record the code and the machine."""

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
    """Return a short hash of ids and captions that identifies a table."""
    digest = hashlib.sha256()
    for id, caption in zip(pairs["id"][:], pairs["caption"][:]):
        digest.update(f"{id}\t{caption}\n".encode())
    return digest.hexdigest()[:16]


def machine() -> str:
    """Return the processor or GPU and the torch version, in words."""
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
    """Return the ``version`` of otclib and the ``commit`` of its checkout; None if it was installed without one.

    ``-modified`` after the commit says that files of the package differed from it.
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
    """Return ``metrics.json`` of a run folder."""
    path = Path(run) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.json: it is not a finished run")
    return json.loads(path.read_text())


def config_of(run: str | Path) -> dict:
    """Return ``config.json`` of a run folder: defence, options (under today's names), seed, learning rate and so on."""
    config = json.loads((Path(run) / "config.json").read_text())
    return config | {"options": today(config["options"])} if "options" in config else config


RENAMED = {"least": "min_safe"}  # older names of options, and today's


def today(options: dict) -> dict:
    """Return the options of a defence, which an older run or record may name otherwise, under today's names."""
    return {RENAMED.get(name, name): value for name, value in options.items()}


def log_of(run: str | Path) -> list[dict]:
    """Return one dict per finished epoch, also of an unfinished run; none before the first epoch is over."""
    file = Path(run) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def seconds_until_safe(log: list[dict], before: float = 0.0, accuracy: float = 0.95, asr: float = 0.02) -> float | None:
    """Return the seconds of training until a model is accurate and safe and stays so; None if it never is.

    This is the end of the first epoch from which on, in every epoch, zero-shot accuracy is at least ``accuracy``, the
    attack success rate is at most ``asr`` and no targeted image is hit (on the watched images).
    ``before`` are seconds already spent; for CleanCLIP those of the model that it cleans. On a CPU these are
    core-seconds, which do not depend on the machine's other work.
    """

    def good(line: dict) -> bool:
        safe = (line.get("attack_success_rate") or 0) <= asr and not line.get("targets_hit")
        return line.get("zero_shot_top1", 0) >= accuracy and safe

    last_bad = max((k for k, line in enumerate(log) if not good(line)), default=-1)
    if last_bad + 1 == len(log):
        return None
    return before + seconds_of(log[: last_bad + 2])


def column(log: list[dict], key: str) -> list[float | None]:
    """Return one value of every epoch, rounded to four digits; None if an epoch has none."""
    return [None if line.get(key) is None else round(line[key], 4) for line in log]


def seconds_of(log: list[dict]) -> float:
    """Return the seconds of training: core-seconds if they were counted, else seconds of the clock."""
    return sum(line.get("core_seconds", line["seconds"]) for line in log)
