"""One run as a YAML file of flat keys, for ``otclib train --config`` and, as a grid of one cell, for the workflow.

    dataset: coco                                             # the keys are the options of `otclib train`
    root: data/coco
    attack: [targeted, {name: badnets, rate: 0.001}]          # names, or mappings of a name and its options; []: none
    defense: cleanclip
    options: {alone: 2.0}
    model: runs/published/clip-coco/model.safetensors
    out: runs/published/cleanclip-coco
    processes: 2                                              # the workflow launches so many, each with a GPU
    repairs: configs/published/clip-coco.yaml                 # the workflow trains its run first

All paths are relative to the working directory. ``configs/published`` has one such file per published number.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

OF_THE_WORKFLOW = ("processes", "repairs")  # what `otclib train` leaves to the workflow
SOURCE = ("dataset", "root", "size", "data_options")
NEEDED = ("dataset", "attack", "defense", "out")
NOT_OF_A_SYSTEM = {
    "manifest",
    "defense",
    "watch",
    "progress",
    "live",
    "tick",
    "out",
}  # what ``train`` takes besides ``how``


def read(file: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, without the keys that have no value.

    Raises
    ------
    FileNotFoundError : there is no such file.
    ValueError : the file is not YAML, or does not hold a mapping of names.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"no configuration at {file}")
    try:
        found = yaml.safe_load(Path(file).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        shown = " ".join(repr(found).split())
        raise ValueError(f"{file} must hold a mapping of options, such as 'epochs: 8', got {shown[:80]}")
    return {key: value for key, value in found.items() if value is not None}


def refuse_unknown(file: str | Path, found: Collection[str], known: Collection[str]) -> None:
    """Raise a ValueError that names the file, its unknown keys and the known ones."""
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"{file} has the unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def words(file: str | Path, options: Collection[str]) -> dict[str, Any]:
    """Return the values of a file as a command line would give them: mappings as JSON, ``attack`` as a list of words.

    ``options`` : the options of the command, with underscores. The keys of the workflow are known, and left out.

    Raises
    ------
    FileNotFoundError, ValueError : as ``read``; an unknown key; a value of the wrong kind.
    """
    found = read(file)
    refuse_unknown(file, found, {*options, *OF_THE_WORKFLOW})
    out = {key: value for key, value in found.items() if key not in OF_THE_WORKFLOW}
    for key in ("options", "data_options"):
        if not isinstance(out.get(key, {}), dict):
            raise ValueError(f"{key} in {file} must be a mapping, such as {{name: 1}}, got {out[key]!r}")
        out |= {key: json.dumps(out[key])} if key in out else {}
    if "attack" in out:
        out["attack"] = [json.dumps(each) if isinstance(each, dict) else each for each in planned(out["attack"], file)]
        out["attack"] = out["attack"] or ["none"]
    return out


def planned(attack: Any, file: str | Path = "the configuration") -> list[str | dict]:
    """Return the value of ``attack`` as a list, in which an attack is a name or a mapping with a name."""
    given = attack if isinstance(attack, list) else [attack]
    for each in given:
        if not isinstance(each, str) and not (isinstance(each, Mapping) and "name" in each):
            raise ValueError(
                f"attack in {file} lists names, or mappings such as {{name: badnets, rate: 0.001}}; got {each!r}"
            )
    return [each for each in given if each != "none"]


def how() -> list[str]:
    """Return the names of what ``train`` takes besides the pairs and the options of a defence, such as ``lr``."""
    from otclib.training import train

    parameters = inspect.signature(train).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in NOT_OF_A_SYSTEM]


def is_flat(config: Mapping) -> bool:
    """Return whether a configuration describes one run; that of a grid has systems, data sets and attacks."""
    return not {"systems", "datasets", "attacks"} & set(config)


def as_grid(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of one run as that of a grid of one cell; for a repair also the cell that it repairs.

    That cell is trained as the file ``repairs`` says, on the data, with the attacks and with the seed of the repair.

    The run folder is ``<dataset>/<attack>/seed<k>/<defense>`` beside ``out``, so that the runs of one data set lie
    together, and the undefended run that CleanCLIP repairs is trained only once.

    Raises
    ------
    ValueError : an unknown or a missing key, or a repair of something else than a run of ``clip``.
    """
    from otclib import defenses

    config = {key: value for key, value in config.items() if value is not None}
    refuse_unknown("the configuration", config, {*SOURCE, *NEEDED, *OF_THE_WORKFLOW, *how(), "options", "repair_size"})
    if missing := [key for key in NEEDED if key not in config]:
        raise ValueError(f"the configuration of one run needs {', '.join(NEEDED)}; it lacks {', '.join(missing)}")
    source = {key: config[key] for key in SOURCE[:-1] if key in config} | config.get("data_options", {})
    attack, defense = planned(config["attack"]), config["defense"]
    system = {"defense": defense} | config.get("options", {}) | {key: config[key] for key in how() if key in config}
    system |= {key: float(system[key]) for key in ("lr", "weight_decay") if key in system}  # YAML takes 5e-4 for a text
    seed = system.pop("seed", 0)
    systems = {defense: system}
    grid: dict[str, Any] = {
        "out": str(Path(config["out"]).parent),
        "datasets": {config["dataset"]: source},
        "attacks": {"+".join(each if isinstance(each, str) else each["name"] for each in attack) or "none": attack},
        "seeds": [seed],
        "parameters": {"processes": config.get("processes", 1)},
    }
    if defenses.repairs(defense):
        if "repairs" not in config:
            raise ValueError(f"{defense} goes on from a run: `repairs` must name the configuration of it, got none")
        same = {key: config[key] for key in (*SOURCE, "attack", "seed", "out") if key in config}
        first = as_grid(read(config["repairs"]) | same)
        if list(first["systems"]) != ["clip"]:
            raise ValueError(f"what is repaired is a run of clip, {config['repairs']} is {', '.join(first['systems'])}")
        systems = first["systems"] | systems
        grid["repair_on"] = {"trusted": config.get("repair_size")}
    return grid | {"systems": systems}
