"""The run folder's small print: written whole or not at all, and with what it was made."""

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

import otclib


def write_json(path: Path, value) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1))
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
    package = Path(otclib.__file__).resolve().parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD") if git("ls-files", "__init__.py") else None
        if commit and git("status", "--porcelain", "--untracked-files=no", "--", "."):
            commit += "-modified"
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {"version": otclib.__version__, "commit": commit}
