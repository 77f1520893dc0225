"""The least dose: the smallest amount of poison that an undefended model learns on a data set, found by training.

    otclib dose --dataset emoji-scenes --attack targeted --attack badnets

A dose is a number: of planted pairs (``count``) of a backdoor, of ``copies`` of each image of a targeted attack. It is
enough if the *mean over the tuning seeds* 10, 11 and 12 reaches an attack success rate of 90 %, or 14 of 16 targets.
The evaluation seeds 0 to 2 are never used for it. The doses are doubled from a first one until one is enough (or halved
until one is not), and the geometric mean of the last two is tried, so that the least dose is known within a factor of
about 1.5. A rung ends at its first seed if that reaches less than half of what is enough.

``figures/doses.json`` has one record for each data set, attack and model. An attack that is given as ``{"name":
"badnets", "dose": "least"}`` takes the recorded dose (``with_dose``), and with ``"times": 2`` twice as much.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from otclib import attacks, data, metrics
from otclib.runs import code, machine, metrics_of, write_json
from otclib.training import train

ROOT = Path(__file__).resolve().parents[2]
RECORDS = (ROOT if (ROOT / "pyproject.toml").exists() else Path()) / "figures" / "doses.json"
ENOUGH = {"attack_success_rate": 0.9, "targets_hit": 7 / 8}  # of the triggered images, of the targets
HOPELESS = 1 / 2  # of what is enough: less than that at the first seed ends a rung
CLOSE = 1.5  # the least dose over the next lower one that was tried
MOST = 1 / 4  # of the pairs are planted, at most
SEEDS, EVALUATION = (10, 11, 12), (0, 1, 2)


def amount(attack: str) -> str:
    """Return the option that is an attack's dose: ``copies`` of a targeted attack, ``count`` of a backdoor."""
    return "copies" if attacks.plants_copies(attack) else "count"


def in_words(attack: str, dose: int) -> str:
    """Return a dose as "8 copies" of a targeted attack, or "8 pairs" of a backdoor."""
    return f"{dose} {'copies' if attacks.plants_copies(attack) else 'pairs'}"


def without_dose(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name and the options of an attack, without its dose."""
    return {key: value for key, value in spec.items() if key not in ("dose", "times")}


def with_dose(
    spec: Mapping[str, Any], dataset: str, options: Mapping[str, Any] | None = None, model: str | Path = "small"
) -> dict[str, Any]:
    """Return what ``attacks.load`` takes: ``dose`` becomes a count, copies or a rate; other options stay.

    ``{"dose": 40}`` are 40 pairs (targeted: 40 copies), ``{"dose": 0.01}`` is a rate, ``{"dose": "least"}`` is the
    recorded dose of the data set, and ``{"dose": "least", "times": 2}`` twice as much.

    Raises
    ------
    ValueError : a dose that is none of these, or given twice; no least dose is recorded.
    """
    dose, times, out = spec.get("dose"), spec.get("times", 1), without_dose(spec)
    if dose is None and "times" not in spec:
        return out
    key = amount(out["name"])
    if given := sorted({"rate", "count", "copies"} & set(out)):
        raise ValueError(f"an attack has one dose, {out['name']} has dose {dose!r} and {given[0]} {out[given[0]]!r}")
    if "times" in spec and (dose != "least" or isinstance(times, bool) or not times > 0):
        raise ValueError(f"times is a positive multiple of the dose 'least', got times {times!r} and dose {dose!r}")
    if dose == "least":
        return out | {key: max(1, round(times * least_recorded(out, dataset, options, model)))}
    if isinstance(dose, float) and key == "count":
        return out | {"rate": dose}
    if isinstance(dose, int) and not isinstance(dose, bool):
        return out | {key: dose}
    share = " or a share of the pairs, such as 0.01," if key == "count" else ""
    raise ValueError(f"the dose of {out['name']} is 'least', a whole number ({key}){share} got {dose!r}")


def known(
    dataset: str,
    options: Mapping[str, Any] | None = None,
    attack: str | Mapping[str, Any] = "badnets",
    model: str | Path = "small",
    records: Path | None = None,
) -> dict[str, Any] | None:
    """Return the record of a least dose, or None.

    ``options`` : what ``data.load`` took besides name and seed, with ``root`` and ``size`` where they were given.
    """
    wanted = _key(dataset, options, attack, model)
    return next((record for record in _read(records) if wanted.items() <= record.items()), None)


def least_recorded(
    attack: Mapping[str, Any], dataset: str, options: Mapping[str, Any] | None = None, model: str | Path = "small"
) -> int:
    """Return the least dose of a record.

    Raises
    ------
    ValueError : there is no record; the message has the command that makes it. Or no dose was enough.
    """
    record, name = known(dataset, options, attack, model), attack["name"]
    if record is None:
        command = shlex.join(_command(_key(dataset, options, attack, model)))
        raise ValueError(f"no least dose of {name} is recorded for {dataset} and the model {model}; run: {command}")
    if record["dose"] is None:
        tried = max(rung["dose"] for rung in record["rungs"])
        raise ValueError(
            f"no dose of {name} is enough on {dataset}: up to {in_words(name, tried)} were tried ({record['ended']})"
        )
    return record["dose"]


@dataclass(eq=False)
class Ladder:
    """The doses of one attack that were tried, and the next one to try."""

    attack: dict[str, Any]  # its name and options, without the dose
    start: int
    rungs: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None  # why no higher dose can be tried

    @property
    def name(self) -> str:
        return self.attack["name"]

    @property
    def metric(self) -> str:
        return "targets_hit" if attacks.plants_copies(self.name) else "attack_success_rate"

    @property
    def least(self) -> int | None:
        """The least dose that was enough so far."""
        return min((rung["dose"] for rung in self.rungs if rung["enough"]), default=None)

    @property
    def next(self) -> int | None:
        """The dose to try next; None at the end."""
        if self.ended or not self.rungs:
            return None if self.ended else self.start
        high = self.least
        low = max((r["dose"] for r in self.rungs if not r["enough"] and r["dose"] < (high or np.inf)), default=0)
        if high is None:
            return 2 * low
        if low == 0:
            return high // 2 or None
        middle = round((low * high) ** 0.5)
        return middle if low < middle < high and high / low > CLOSE else None

    def planted(self, dose: int) -> attacks.Attack:
        return attacks.load(**self.attack | {amount(self.name): dose})

    def value(self, found: Mapping[str, Any]) -> float:
        """Return a run's attack success, as a share.

        Raises
        ------
        ValueError : it was not measured.
        """
        values = [found.get(f"{self.metric}/{self.name}"), found.get(self.metric)]
        value = next((value for value in values if value is not None), None)
        if value is None:
            raise ValueError(f"the success of {self.name} was not measured: the data set has no labelled test images")
        of = found.get(f"targets/{self.name}", found.get("targets"))
        return value / of if attacks.plants_copies(self.name) else value

    def tell(self, dose: int, runs: Mapping[int, Mapping[str, Any]]) -> str:
        """Take the results of a dose, {seed: metrics}; return them in words."""
        values = {str(seed): self.value(found) for seed, found in runs.items()}
        count = [found[f"poison_count/{self.name}"] for found in runs.values()]
        rate = [found[f"poison_rate/{self.name}"] for found in runs.values()]
        rung: dict[str, Any] = {
            "dose": dose,
            "count": round(float(np.mean(count))),
            "rate": float(np.mean(rate)),
            "success": values,
            "zero_shot_top1": {str(seed): found.get("zero_shot_top1") for seed, found in runs.items()},
            "enough": float(np.mean([*values.values()])) >= ENOUGH[self.metric],
        }
        self.rungs.append(rung)
        return (
            f"{self.name}, {in_words(self.name, dose)} ({metrics.summary(rate, 100, 2)} % of the pairs): success "
            f"{metrics.summary(values.values(), 100)} %, seed{'s' * (len(runs) > 1)} {', '.join(values)}: "
            f"{'enough' if rung['enough'] else 'too little'}"
        )

    def record(self) -> dict[str, Any]:
        """Return the least dose, and all that were tried."""
        best = next((rung for rung in self.rungs if rung["dose"] == self.least), {})
        out = {"dose": self.least, "amount": amount(self.name), "count": best.get("count"), "rate": best.get("rate")}
        out |= {"metric": self.metric, "at_least": ENOUGH[self.metric], "ended": self.ended}
        return out | {"rungs": sorted(self.rungs, key=lambda rung: rung["dose"])}

    def hopeless(self, found: Mapping[str, Any]) -> bool:
        """Return whether a run is so far from enough that no other seed need be tried."""
        return self.value(found) < HOPELESS * ENOUGH[self.metric]


def least(
    dataset: str,
    attack: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    *,
    options: Mapping[str, Any] | None = None,
    size: int | None = None,
    root: str | Path | None = None,
    model: str | Path = "small",
    seeds: Sequence[int] = SEEDS,
    start: int | None = None,
    out: str | Path = "runs/doses",
    records: Path | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Find the least dose of an attack on a data set; write its record to ``figures/doses.json`` and return it.

    Of several attacks those whose least dose is not found yet are planted together, and each has a record.

    Parameters
    ----------
    attack : what ``attacks.named`` takes, without a dose; or a list of these, of different names.
    options : of ``data.load``; so are ``size`` and ``root``.
    seeds : of the pairs, the poison and the runs: the tuning seeds, none of which may be an evaluation seed.
    start : the first dose; default 8 pairs, or 2 copies.
    out : the folder of the runs. Finished runs in it are not trained again.
    how : of ``train``, such as ``epochs`` or ``precision``.

    Raises
    ------
    ValueError : no attack, two of one name, an attack with a dose; a set that cannot be attacked, or cannot be tested.
    """
    given = [attack] if isinstance(attack, (str, Mapping)) else list(attack)
    for each in map(attacks.named, given):
        if dosed := {"dose", "times", "rate", "count", "copies"} & set(each):
            raise ValueError(f"a least dose is looked for, the attack must not have {', '.join(sorted(dosed))}")
    source = {"root": None if root is None else str(root), "size": size, **(options or {})}
    keys = [_key(dataset, source, each, model) for each in given]
    names = [key["attack"]["name"] for key in keys]
    if not names or len(set(names)) < len(names) or not seeds:
        raise ValueError(f"a least dose is that of attacks of different names, on some seeds, got {names} and {seeds}")
    if wrong := sorted(set(seeds) & set(EVALUATION)):
        raise ValueError(f"a dose is found on tuning seeds; {wrong} are kept for evaluation, choose others")
    ladders = [
        Ladder(key["attack"], start or (2 if attacks.plants_copies(key["attack"]["name"]) else 8)) for key in keys
    ]
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:8]
    world = World(dataset, source, model, Path(out) / f"{dataset}-{digest}", seeds, how)
    while doses := {ladder: dose for ladder in ladders if (dose := ladder.next) is not None}:
        for ladder, dose in doses.items():
            ladder.ended = world.refusal(ladder, dose)
            if ladder.ended and not ladder.rungs:
                raise ValueError(f"{ladder.name} cannot be planted on {dataset}: {ladder.ended}")
        doses = {ladder: dose for ladder, dose in doses.items() if not ladder.ended}
        runs = world.trained(doses) if doses else {}
        for ladder, dose in doses.items():
            print(ladder.tell(dose, runs), flush=True)
    same = {"seeds": list(seeds), "planted_together": names, "training": how, "code": code(), "machine": machine()}
    found = [key | ladder.record() | same for key, ladder in zip(keys, ladders)]
    kept = [r for r in _read(records) if not any(key.items() <= r.items() for key in keys)]
    file = records or RECORDS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, sorted(kept + found, key=lambda r: (r["dataset"], r["attack"]["name"], json.dumps(r["options"]))))
    for ladder in ladders:
        said = "none was enough" if ladder.least is None else in_words(ladder.name, ladder.least)
        print(f"least dose of {ladder.name} on {dataset}: {said}, recorded in {file}", flush=True)
    return found


@dataclass
class World:
    """A data set on which doses are tried, with the folder of its undefended runs."""

    dataset: str
    source: dict[str, Any]
    model: str | Path
    out: Path
    seeds: Sequence[int]
    how: Mapping[str, Any]

    def pairs(self, seed: int) -> Any:
        return data.load(self.dataset, seed=seed, **self.source)

    @cached_property
    def first(self) -> Any:
        return self.pairs(self.seeds[0])

    def refusal(self, ladder: Ladder, dose: int) -> str | None:
        """Return why a dose cannot be planted; None if it can."""
        attack, n = ladder.planted(dose), len(self.first)
        planted = dose * attack.targets if isinstance(attack, attacks.Targeted) else dose
        if planted > MOST * n:
            return f"{planted} planted pairs would be more than {MOST:.0%} of {n:,}"
        try:
            attack.poison(self.first, seed=self.seeds[0])
        except ValueError as error:
            return str(error)
        return None

    def trained(self, doses: Mapping[Ladder, int]) -> dict[int, dict[str, Any]]:
        """Train undefended on these doses; return {seed: metrics}, of one seed if that is hopeless for all."""
        name, out = "+".join(f"{ladder.name}-{dose}" for ladder, dose in doses.items()), {}
        for seed in self.seeds:
            planned = [ladder.planted(dose) for ladder, dose in doses.items()]
            poisoned, manifest = attacks.plant(self.pairs(seed), planned, seed=seed)
            what: dict[str, Any] = {"manifest": manifest, "defense": "clip", "model": self.model, "seed": seed}
            out[seed] = metrics_of(train(poisoned, **what, out=self.out / name / f"seed{seed}", **self.how))
            if seed == self.seeds[0] and all(ladder.hopeless(out[seed]) for ladder in doses):
                break
        return out


def _key(dataset: str, options: Mapping | None, attack: str | Mapping[str, Any], model: str | Path) -> dict[str, Any]:
    """Return what identifies a record; an attacker's surrogate, a file, does not."""
    spec = {k: v for k, v in without_dose(attacks.named(attack)).items() if k != "surrogate"}
    given = {k: v for k, v in (options or {}).items() if v is not None}
    return json.loads(
        json.dumps({"dataset": dataset, "options": given, "attack": spec, "model": str(model)}, default=str)
    )


def _read(records: Path | None) -> list[dict[str, Any]]:
    file = records or RECORDS
    return json.loads(file.read_text()) if file.exists() else []


def _command(key: Mapping[str, Any]) -> list[str]:
    """Return the command that makes the record of a key."""
    options, attack = dict(key["options"]), key["attack"]
    words = ["otclib", "dose", "--dataset", key["dataset"]]
    words += [w for name in ("root", "size") if name in options for w in (f"--{name}", str(options.pop(name)))]
    words += ["--data-options", json.dumps(options)] if options else []
    words += ["--attack", json.dumps(attack) if len(attack) > 1 else attack["name"]]
    return words + (["--model", key["model"]] if key["model"] != "small" else [])
