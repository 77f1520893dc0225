"""A grid of runs: every data set, attack, system and seed of a configuration, as Snakemake runs them (``workflow/``).

    OUT/<dataset>/<attack>/seed<k>/<system>     a cell: one run folder
    figures/<record>.json                       one record per cell; its tables and pictures are drawn by ``pages``

A configuration names its parts, and says what each name stands for:

    out: runs/table
    record: results                              # none: nothing is recorded
    datasets: {scenes: {dataset: scenes}}        # what ``data.load`` takes
    attacks: {none: [], badnets: [badnets], weak: [{name: badnets, rate: 0.001}]}    # what ``attacks.load`` takes,
                                                 # and for ``rate`` also ``dose: least`` (``experiments.doses``),
                                                 # and for ``surrogate`` a cell, {attack: none, system: clip, seed: 100}
    systems: {clip: {defense: clip}, global only: {defense: otcclip, global_weight: 1.0}}    # what ``train`` takes
    seeds: [0, 1, 2]
    parameters: {precision: bf16, processes: 1}  # of all cells; of several processes each has a GPU

The first attack that plants nothing gives the clean runs, with which the others are compared. A repair (CleanCLIP) goes
on from the system ``clip`` under the same attack. It trains on ``repair_on``: clean pairs of another seed, or with
``{trusted: 1000}`` so many (``null``: all) of the pairs that no attack touched.

An attacker's surrogate is the model of another cell of the data set, under any of the systems. ``system: same`` is the
system of the cell that is attacked; for a repair that is ``clip``, because the poison is planted before the repair.

``Grid.of`` also takes the configuration of one run (``experiments.config``).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset

from otclib import attacks, data, defenses, processes, runs
from otclib.attacks import planting
from otclib.evaluation import by_class
from otclib.experiments import config as flat
from otclib.experiments import doses
from otclib.ranks import as_many_as_asked
from otclib.training import train

BY_EPOCH = ("zero_shot_top1", "attack_success_rate", "targets_hit", "poison_kept", "clean_kept")  # recorded of each run
SAME = "same"  # a surrogate's system: that of the cell that is attacked
KEYS = set("out record kind chapter datasets attacks systems seeds parameters repair_on recorded figures".split())


@dataclass(frozen=True)
class Cell:
    """One run, by the names that the configuration gives to its parts."""

    dataset: str
    attack: str
    system: str
    seed: int

    def __str__(self) -> str:
        return f"{self.system} on {self.attack}, {self.dataset}, seed {self.seed}"


class Grid:
    """The cells of a configuration, whose keys the top of this module describes.

    Raises
    ------
    ValueError : a key, data set, attack, defence or option that is not known.
    """

    def __init__(self, config: Mapping):
        if unknown := set(config) - KEYS:
            raise ValueError(
                f"unknown key {', '.join(sorted(unknown))} in the grid; it takes {', '.join(sorted(KEYS))}"
            )
        self.config, self.out = config, Path(config["out"])
        self.parameters = {k: v for k, v in (config.get("parameters") or {}).items() if v is not None}
        self.processes = self.parameters.pop("processes", 1)
        if not isinstance(self.processes, int) or self.processes < 1 or (self.processes > 1 and config.get("chapter")):
            raise ValueError(
                f"processes is a whole number from 1 on, and 1 for a chapter's runs, got {self.processes!r}"
            )
        self.datasets, self.attacks, self.systems = (config[key] for key in ("datasets", "attacks", "systems"))
        for each in self.datasets.values():
            if each["dataset"] not in data.NAMES:
                raise ValueError(f"unknown dataset {each['dataset']!r}; there are {', '.join(data.NAMES)}")
        for specs in self.attacks.values():
            for spec in specs:
                found = _surrogate(spec)
                attacks.load(**doses.without_dose(_named(spec)) | ({"surrogate": ""} if found else {}))
                if found and (found["attack"] not in self.attacks or found["system"] not in {SAME, *self.systems}):
                    raise ValueError(
                        f"a surrogate's attack is one of {', '.join(self.attacks)}, and its system one of "
                        f"{', '.join([SAME, *self.systems])}, got {found}"
                    )
        for system in self.systems.values():
            defenses.load(system["defense"], **self._options(system))
        self.unpoisoned = next((name for name, specs in self.attacks.items() if not specs), None)

    @classmethod
    def of(cls, config: Mapping) -> Grid:
        """Return the grid of a configuration, also of one run's."""
        return cls(flat.as_grid(config) if flat.is_flat(config) else config)

    @property
    def cells(self) -> list[Cell]:
        """All cells, one seed after the other."""
        c = self.config
        return [
            Cell(d, a, s, k)
            for k in c["seeds"]
            for d in self.datasets
            for a in self.attacks
            for s in self._systems_of(a)
        ]

    def _systems_of(self, attack: str) -> list[str]:
        """Return the systems to run: all; in a table of systems, on the set without poison only ``clip``."""
        if attack == self.unpoisoned and self.config.get("kind") == "systems":
            return ["clip"]
        return list(self.systems)

    def folder(self, cell: Cell) -> Path:
        return self.out / cell.dataset / cell.attack / f"seed{cell.seed}" / cell.system.replace(" ", "-")

    def cell(self, dataset: str, attack: str, system: str, seed: int | str) -> Cell:
        """Return the cell of a folder's names, in which dashes replace the blanks of a system's name."""
        return Cell(dataset, attack, next(name for name in self.systems if name.replace(" ", "-") == system), int(seed))

    def needs(self, cell: Cell) -> list[Cell]:
        """Return the cells that must be finished first: the clean run, a surrogate, the model that is repaired."""
        first = []
        if cell.attack != self.unpoisoned:
            if clean := self._clean(cell):
                first.append(clean)
            first += filter(None, (self._surrogate_of(cell, spec) for spec in self.attacks[cell.attack]))
        if defenses.repairs(self.systems[cell.system]["defense"]):
            first.append(Cell(cell.dataset, cell.attack, "clip", cell.seed))
        return first

    def _clean(self, cell: Cell) -> Cell | None:
        """Return the undefended run without poison that a cell is compared with; None for a chapter's runs."""
        if self.unpoisoned is None or "clip" not in self.systems or self.config.get("chapter"):
            return None
        return Cell(cell.dataset, self.unpoisoned, "clip", cell.seed)

    def _surrogate_of(self, cell: Cell, spec: str | Mapping) -> Cell | None:
        """Return the cell whose model is the surrogate of an attack on a cell; None for an attack without one."""
        found = _surrogate(spec)
        if found is None:
            return None
        system = found["system"]
        if system == SAME:
            system = "clip" if defenses.repairs(self.systems[cell.system]["defense"]) else cell.system
        return Cell(cell.dataset, found["attack"], system, found["seed"])

    def _source(self, cell: Cell) -> tuple[str, dict]:
        """Return the name of a cell's data set, and what else ``data.load`` takes."""
        source = dict(self.datasets[cell.dataset])
        return source.pop("dataset"), source

    def planned(self, cell: Cell) -> list:
        """Return the attacks on a cell's training set; raises a ValueError where no least dose is recorded."""
        out, (name, source) = [], self._source(cell)
        model = self.parameters.get("model") or self.systems[cell.system].get("model", "small")
        for spec in self.attacks[cell.attack]:
            options = doses.with_dose(_named(spec), name, source, model)
            if surrogate := self._surrogate_of(cell, spec):
                options["surrogate"] = str(self.folder(surrogate) / "model.safetensors")
            out.append(attacks.load(**options))
        return out

    def _options(self, system: Mapping) -> dict:
        """Return the defence's own options in a system."""
        epochs = {"epochs": self.parameters["epochs"]} if "epochs" in self.parameters else {}
        return {k: v for k, v in system.items() if k not in {"defense", *flat.how()} - {"epochs"}} | epochs

    def run(self, cell: Cell) -> Path:
        """Poison, train and evaluate a cell; return its folder. A finished cell is returned at once."""
        name, source = self._source(cell)
        untouched = data.load(name, seed=cell.seed, **source)
        pairs, manifest = untouched, None
        if planned := self.planned(cell):
            pairs, manifest = attacks.plant(pairs, planned, seed=cell.seed)
        system = self.systems[cell.system] | self.parameters
        clean = self._clean(cell)
        if clean and cell.attack != self.unpoisoned:
            system["clean"] = self.folder(clean)
        if defenses.repairs(system["defense"]):
            given = self.config.get("repair_on") or {"seed": 1000, "size": 2000}
            pairs = (
                attacks.trusted(untouched, manifest, given["trusted"], cell.seed)
                if "trusted" in given
                else self._repair_pairs(cell, name, source, given)
            )
            system["model"] = self.folder(Cell(cell.dataset, cell.attack, "clip", cell.seed)) / "model.safetensors"
        return train(pairs, manifest=manifest, seed=cell.seed, out=self.folder(cell), **system)

    def _repair_pairs(self, cell: Cell, name: str, source: dict, given: Mapping) -> Dataset:
        size = min(source.get("size") or given["size"], given["size"])
        pairs = data.load(name, seed=cell.seed + given["seed"], **source | {"size": size})
        if self.systems[cell.system]["defense"] == "cleanclip-supervised":
            return pairs.filter(lambda label: label is not None, input_columns="label")
        return pairs

    # -- records -----------------------------------------------------------------------------------------------------

    def record(self, cell: Cell) -> dict:
        """Return the record of a finished cell."""
        run, kind = self.folder(cell), self.config.get("kind")
        metrics, config = runs.metrics_of(run), runs.config_of(run)
        rate = sum(value for key, value in metrics.items() if key.startswith("poison_rate/"))
        spent, defense = [run], config["defense"]
        if defenses.repairs(defense):  # its model was trained first, on the poison
            spent.insert(0, self.folder(Cell(cell.dataset, cell.attack, "clip", cell.seed)))
            rate = sum(value for key, value in runs.metrics_of(spent[0]).items() if key.startswith("poison_rate/"))
        seconds, log = [runs.seconds_of(runs.log_of(each)) for each in spent], runs.log_of(run)
        return ({"dataset": cell.dataset} if len(self.datasets) > 1 else {}) | {
            "defense": defense,
            "attack": "targeted+badnets" if kind == "dose" else cell.attack,
            "seed": cell.seed,
            "variant": cell.system if kind == "ablation" else None,
            "dose": float(cell.attack) if kind == "dose" else None,
            "rate": rate,
            "seconds_total": sum(seconds),
            "seconds_until_safe": runs.seconds_until_safe(log, sum(seconds[:-1])),
            **{k: v for k, v in metrics.items() if k not in ("defense", "seed")},
            "precision": config["precision"],
            "options": config["options"],
            "attacks": [json.loads(attack) for attack in config["attacks"]],
            "machine": config["machine"],
            "code": config.get("code"),
            "by_epoch": {key: runs.column(log, key) for key in BY_EPOCH if any(key in line for line in log)},
        }

    def finished(self, cell: Cell) -> bool:
        return (self.folder(cell) / "metrics.json").exists()

    def _with_tables(self, cell: Cell) -> tuple:
        """Return a cell's run, its clean pairs and its test images, all of them."""
        name, source = self._source(cell)
        pairs = data.load(name, seed=cell.seed, **source)
        return self.folder(cell), pairs, data.load(name, split="test", seed=cell.seed, **source | {"size": None})

    def cell_of(self, record: Mapping) -> Cell:
        """Return the cell to which a record belongs."""
        attack = record["attack"] if record.get("dose") is None else f"{record['dose']:g}"
        dataset = record.get("dataset") or next(iter(self.datasets))
        return Cell(dataset, attack, record.get("variant") or record["defense"], record["seed"])

    def difference(self, cell: Cell, found: Mapping) -> str | None:
        """Return, in words, how a record differs from what would be trained now; None if it does not."""
        if cell.dataset not in self.datasets or cell.system not in self.systems or cell.attack not in self.attacks:
            return None
        system = self.systems[cell.system]
        method = defenses.load(system["defense"], **self._options(system))
        wanted = {
            "options": asdict(method),
            "attacks": sorted(planting.spec(attack, attack.kind) for attack in self.planned(cell)),
        }
        if "precision" in self.parameters:
            wanted["precision"] = self.parameters["precision"]
        have = dict(found)
        have["options"] = runs.today(found["options"])
        chosen = {attack.kind for attack in self.planned(cell) if getattr(attack, "target", "") is None}  # by the set
        have["attacks"] = sorted(
            json.dumps({k: v for k, v in each.items() if k != "target" or each["name"] not in chosen}, sort_keys=True)
            for each in found["attacks"]
        )
        for key, value in wanted.items():
            if have[key] != value:
                return f"{key} was {have[key]!r}, is {value!r}"
        return None

    def recorded(self, figures: Path) -> dict[Cell, dict]:
        """Return the existing records, by cell.

        Raises
        ------
        ValueError : a record has other options, attacks or precision than would be trained now.
        """
        file, found = figures / f"{self.config.get('record')}.json", {}
        for record in json.loads(file.read_text()) if file.exists() else []:
            cell = self.cell_of(record)
            if difference := self.difference(cell, record):
                raise ValueError(f"{file} holds another record of {cell}: {difference}; move it away, or name another")
            found[cell] = record
        return found

    def asked(self, figures: Path) -> list[Cell]:
        """Return the cells to run: all, or with ``recorded: true`` those without a record; refuse a missing dose."""
        for cell in self.cells if not self.config.get("chapter") else ():
            self.planned(cell)
        known = self.recorded(figures) if self.config.get("record") else {}
        return [cell for cell in self.cells if not (self.config.get("recorded") and cell in known)]

    def collect(self, figures: Path) -> list[dict]:
        """Write the record of every finished cell, and keep the other existing records; return all of them."""
        records = self.recorded(figures)
        for cell, record in records.items():
            if record.get("code") != runs.code():
                print(
                    f"kept as recorded, by other code ({(record.get('code') or {}).get('commit')}): {cell}", flush=True
                )
        records |= {cell: self.record(cell) for cell in self.cells if self.finished(cell)}
        figures.mkdir(parents=True, exist_ok=True)
        order = {name: k for k, name in enumerate(self.systems)}
        if self.config.get("kind") == "ablation":  # in the order of the table's variants
            records = dict(sorted(records.items(), key=lambda item: order.get(item[0].system, len(order))))
        runs.write_json(figures / f"{self.config['record']}.json", list(records.values()))
        ours = [cell for cell in records if cell.system == "otcclip-plus"]
        if self.config.get("kind") == "systems" and ours and all(map(self.finished, ours)):
            made_by = {"code": runs.code(), "machine": runs.machine()}
            runs.write_json(figures / "classes.json", made_by | {"classes": by_class(map(self._with_tables, ours))})
        return list(records.values())


def _named(spec: str | Mapping) -> dict:
    return {"name": spec} if isinstance(spec, str) else {k: v for k, v in spec.items() if not isinstance(v, Mapping)}


def _surrogate(spec: str | Mapping) -> dict | None:
    """Return the cell whose model an attacker uses, as ``{attack: none, system: clip, seed: 100}``, or None."""
    found = spec.get("surrogate") if isinstance(spec, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else None


def main(arguments: list[str] | None = None) -> None:
    """Run the cell of ``grid CONFIG DATASET ATTACK SYSTEM SEED METRICS``, with the names of its folder; CONFIG is JSON.

    METRICS is where Snakemake looks for ``metrics.json``: in the run folder, or where its storage plugin wants a copy.
    """
    config, dataset, attack, system, seed, metrics = sys.argv[1:] if arguments is None else arguments
    grid = Grid(json.loads(config))
    run = grid.run(grid.cell(dataset, attack, system, seed))
    if not Path(metrics).exists() and os.environ.get("RANK", "0") == "0":  # of several processes the first one
        Path(metrics).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "metrics.json", metrics)
    print(run)


if __name__ == "__main__":
    as_many_as_asked("otclib.experiments.grid")
    with processes.stoppable("otclib.experiments.grid", "the same command goes on from its last checkpoint"):
        main()
