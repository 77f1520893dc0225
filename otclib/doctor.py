"""What this machine has, what a demo will take on it, and what is missing; without importing torch.

``report_of_data`` says the same of a data set: what is in it, and how it would be split and poisoned.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instruction sets that decide how fast training is
# minutes of `make demo` on two cores: measured with AVX512 and bf16; 1.5 times that with AVX2 alone, as earlier demos
FAST, SLOW = 12, 18
NEEDS = {  # a module, and what it is needed for: the extra of pyproject.toml that brings it
    "papermill": ("the demo and the chapters", "notebooks"),
    "ipywidgets": ("the explorer's widgets", "notebooks"),
    "voila": ("make explorer", "notebooks"),
    "snakemake": ("make table, ablation, dose, figures and batch", "batch"),
    "transformers": ("text towers and tokenizers of Hugging Face", "hf"),
    "pytest": ("make test", "test"),
    "sphinx": ("make book", "book"),
}
PROGRAMS = {
    "make": "the commands of the README",
    "cc": "packages that must be compiled",
    "chromium": "tests in a browser",
}


def report() -> str:
    """All of it as text, a line per fact."""
    cores, sets, memory = _cores(), _sets(), _memory()
    gpu, free = _gpu(), shutil.disk_usage(Path.cwd()).free / 2**30
    lines = [
        f"processor   {_processor()}, {cores} core{'s' * (cores != 1)}, {' '.join(sets) or 'instructions unknown'}",
        f"bf16        {'has a unit' if any('bf16' in s for s in sets) else 'has no unit, so training uses fp32'}",
        f"GPU         {gpu or 'none'}",
        f"memory      {memory:.0f} GiB" + ("" if memory >= 4 else ", and the demo needs 4"),
        f"disk        {free:.0f} GiB free" + ("" if free >= 8 else ", and the set-up needs 7"),
        f"Python      {platform.python_version()}",
        "packages    " + ", ".join(f"{name} {found}" for name, found in _versions().items()),
        f"a demo      about {_minutes(cores, sets)} minutes, after the set-up",
    ]
    missing = [
        f"{name}: for {what}; pip install 'otclib[{extra}]'"
        for name, (what, extra) in NEEDS.items()
        if not find_spec(name)
    ]
    missing += [f"{name}: for {what}" for name, what in PROGRAMS.items() if not shutil.which(name)]
    return "\n".join([*lines, *(f"missing     {what}" for what in missing or ["nothing"])])


def report_of_data(name: str, *, root: str | Path | None = None, split: str = "train", **options: Any) -> str:
    """All that is known of a data set as text, a line per fact; rows that cannot be used are left out and listed.

    Parameters
    ----------
    name, root, split, options : as for ``data.load``.

    Raises
    ------
    ValueError, FileNotFoundError : the set cannot be loaded even so.
    """
    from otclib import data
    from otclib.data import readers

    read = name in readers.READERS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*cannot be used", UserWarning)  # the report says it
        given = {"on_error": "skip"} | options if read else options
        pairs = data.load(name, root=root, split=split, **given)
    own = {key: value for key, value in options.items() if key not in ("on_error", "check", "size", "seed")}
    found = readers.splits(name, root, **own) if read else {}
    lines = [str(data.examine(pairs))]
    lines += ["splits      " + ", ".join(f"{each} {n:,} rows" for each, n in found.items())] if read else []
    return "\n".join([*lines, *(f"{'attack':12}{line}" for line in attack_lines(pairs))])


def attack_lines(pairs: Dataset) -> list[str]:
    """What every attack would plant by default, a line each, or why it cannot.

    The attacks poison a table of the same captions and labels with one tiny picture, which takes a moment.
    """
    import io

    from PIL import Image

    from otclib import attacks

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "png")
    cells = [{"bytes": picture.getvalue(), "path": None}] * len(pairs)
    others = [column for column in pairs.column_names if column != "image"]
    table = pairs.select_columns(others).add_column("image", cells, feature=pairs.features["image"])
    lines = []
    for name in attacks.ATTACKS:
        try:
            _, manifest = attacks.load(name).poison(table.select_columns(pairs.column_names), seed=0)
        except ValueError as error:
            lines.append(f"{name} is refused: {error}")
            continue
        targets = sorted(set(manifest["target_label"]))
        shown = ", ".join(targets[:4]) + (f" and {len(targets) - 4} others" if len(targets) > 4 else "")
        lines.append(f"{name} plants {len(manifest):,} pairs ({100 * len(manifest) / len(pairs):.3g} %) for {shown}")
    return lines


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _sets() -> list[str]:
    flags = next((line.split() for line in _cpuinfo().splitlines() if line.startswith("flags")), [])
    return [name for name in SETS if name in flags]


def _memory() -> float:
    """GiB of memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return 0.0


def _gpu() -> str | None:
    """The first GPU that nvidia-smi names."""
    if not shutil.which("nvidia-smi"):
        return None
    ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=5)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def _versions() -> dict[str, str]:
    out = {}
    for name in ("otclib", "torch", "torchvision", "open_clip_torch", "timm", "POT", "datasets"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "missing"
    return out


def _minutes(cores: int, sets: list[str]) -> int:
    """From what was measured on two cores; the demo's three runs use a core each, or share what there is."""
    two = FAST if "avx512_bf16" in sets or "amx_bf16" in sets else SLOW
    return two * (2 if cores < 2 else 1)
