"""Reads run folders and builds tables; run as a module it makes the README's first one: three seeds of two systems.

python -m otclib.results --out runs/seeds --figures figures     # resumes where it stopped
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

SYSTEMS = ("clip", "otcclip")
ROWS = (  # key, label, factor, format
    ("zero_shot_top1", "zero-shot top-1, %", 100, "{:.1f}"),
    ("attack_success_rate", "BadNets ASR, %", 100, "{:.1f}"),
    ("untriggered_target_rate", "... without the trigger, %", 100, "{:.1f}"),
    ("targets_hit", "targeted images hit", 1, "{:.0f}"),
    ("targets", "... of", 1, "{:.0f}"),
    ("poison_auroc", "poison AUROC", 1, "{:.3f}"),
    ("linear_probe/scenes", "linear probe, scenes, %", 100, "{:.1f}"),
    ("linear_probe/digits", "linear probe, digits, %", 100, "{:.1f}"),
    ("image_to_text_recall_at_1", "image-to-text R@1, %", 100, "{:.1f}"),
    ("text_to_image_recall_at_1", "text-to-image R@1, %", 100, "{:.1f}"),
    ("plan_pointing_accuracy", "plan pointing, %", 100, "{:.1f}"),
    ("plan_mass_ratio", "plan mass on object / chance", 1, "{:.2f}"),
    ("plan_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("plan_mass_ratio/attributes", "... of colours and sizes alone", 1, "{:.2f}"),
    ("cosine_mass_ratio", "cosine mass on object / chance", 1, "{:.2f}"),
    ("cosine_mass_ratio/names", "... of object names alone", 1, "{:.2f}"),
    ("seconds_per_epoch", "seconds per epoch", 1, "{:.0f}"),
)


def read(run: str | Path) -> dict:
    """``metrics.json`` of a run folder."""
    path = Path(run) / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no metrics.json: it is not a finished run")
    return json.loads(path.read_text())


def config(run: str | Path) -> dict:
    """What was asked: defence, its options, seed, learning rate, ..."""
    return json.loads((Path(run) / "config.json").read_text())


def log(run: str | Path) -> list[dict]:
    """One dict per epoch."""
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def grouped(runs: Iterable[str | Path | dict]) -> dict[str, list[dict]]:
    """Metrics by defence, in order of appearance."""
    out: dict[str, list[dict]] = {}
    for run in runs:
        metrics = run if isinstance(run, dict) else read(run)
        out.setdefault(metrics["defense"], []).append(metrics)
    return out


def table(runs: Iterable[str | Path | dict]) -> str:
    """A Markdown table, one column per defence: the value, or mean and range over seeds."""
    groups = grouped(runs)
    lines = ["| | " + " | ".join(groups) + " |", "|---|" + "---:|" * len(groups)]
    first = next(iter(groups.values()))[0]
    rates = [k for k in first if k.startswith("poison_rate/")]
    rows = [*ROWS, *((k, f"{k.split('/')[1]} poison rate, % of pairs", 100, "{:.2f}") for k in rates)]
    for key, label, factor, form in rows:
        cells = []
        for runs_of in groups.values():
            values = [factor * r[key] for r in runs_of if r.get(key) is not None]
            if not values:
                cells.append("")
            elif min(values) == max(values):
                cells.append(form.format(values[0]))
            else:
                mean = "{:.1f}" if form == "{:.0f}" else form
                cells.append(
                    f"{mean.format(np.mean(values))} ({form.format(min(values))} to {form.format(max(values))})"
                )
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spoken(attack: str, run: str | Path) -> str:
    """A finished run in one line."""
    metrics = read(run)
    words = [f"{metrics['defense']} on {attack}, seed {metrics['seed']}:"]
    words.append(f"zero-shot {100 * metrics['zero_shot_top1']:.1f} %")
    if metrics.get("attack_success_rate") is not None:
        words.append(f"ASR {100 * metrics['attack_success_rate']:.1f} %")
    if "targets_hit" in metrics:
        words.append(f"targets {metrics['targets_hit']}/{metrics['targets']}")
    return "  ".join([*words, f"{metrics['seconds_per_epoch']:.0f} s an epoch"])


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
    return before + sum(line.get("core_seconds", line["seconds"]) for line in log[: last_bad + 2])


# -- the table of every system and every attack ----------------------------------------------------------------------

# What was published, with its source. Their data, models and rates are not ours: to be read beside our figures, not
# against them. (defence, attack): (figure, source); "backdoors" stands for any of them.
PUBLISHED = {
    ("clip", "targeted"): ("93.75 %, i.e. 15/16", "SafeCLIP and RoCLIP, abstracts; CC3M"),
    ("clip", "backdoors"): ("up to 100 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("clip", "badnets"): ("99.9 %", "attack-cleanclip, src/results.txt; CC3M"),
    ("clip", "wanet"): ("96.3 %", "SafeCLIP's development notebooks; CC1M, epoch 20"),
    ("roclip", "targeted"): ("12.5 %, i.e. 2/16", "RoCLIP, abstract; CC1M"),
    ("roclip", "backdoors"): ("0 %", "RoCLIP, abstract; CC1M"),
    ("safeclip", "targeted"): ("0 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("safeclip", "backdoors"): ("0 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("cleanclip", "blended"): ("7.2 %", "CleanCLIP, utils/asr_hyper.py, weight 1; CC3M"),
    ("otcclip", "targeted"): ("0 % in most cases", "OTCCLIP, abstract (ACL anthology)"),
    ("otcclip", "backdoors"): ("0 % in most cases", "OTCCLIP, abstract (ACL anthology)"),
}
DEFENSE_NAMES = {
    "clip": "CLIP, undefended",
    "roclip": "RoCLIP",
    "safeclip": "SafeCLIP",
    "cleanclip": "CleanCLIP",
    "otcclip": "OTCCLIP (reconstruction)",
}


def published(defense: str, attack: str) -> tuple[str, str] | None:
    """The published figure for a defence under an attack, and its source; None if we know of none."""
    general = None if attack in ("targeted", "adaptive", "none") else PUBLISHED.get((defense, "backdoors"))
    return PUBLISHED.get((defense, attack), general)


def select(records: list[dict], **where) -> list[dict]:
    return [r for r in records if all(r.get(k) == v for k, v in where.items())]


def order(records: list[dict], key: str) -> list[str]:
    """The values of a key in order of appearance."""
    return list(dict.fromkeys(r[key] for r in records))


def summary(values: list, factor: float = 1, digits: int = 1) -> str:
    """Mean, and the range if there is one."""
    values = [factor * v for v in values if v is not None]
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def success(runs: list[dict]) -> str:
    """The attack's success in a cell: hits of the targets, or ASR in %; how many seeds, if fewer than three."""
    few = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if 0 < len(runs) < 3 else ""
    if runs and "targets_hit" in runs[0]:
        return "+".join(str(r["targets_hit"]) for r in runs) + f" of {runs[0]['targets']} each" + few
    return summary([r.get("attack_success_rate") for r in runs], 100) + few


def attack_table(records: list[dict]) -> str:
    """Markdown: what the attacker got. A row per attack, a column per defence; published figures in italics."""
    defenses = order(records, "defense")
    lines = ["| attack | planted | " + " | ".join(DEFENSE_NAMES[d] for d in defenses) + " | clean model |"]
    lines.append("|---|---:|" + "---:|" * (len(defenses) + 1))
    sources: dict[str, int] = {}
    for attack in order(records, "attack"):
        if attack == "none":
            continue
        cells = []
        for defense in defenses:
            cell = success(select(records, attack=attack, defense=defense)) or "not run"
            known = published(defense, attack)
            if known is not None:
                cell += f"<br>*{known[0]}* [{sources.setdefault(known[1], len(sources) + 1)}]"
            cells.append(cell)
        runs = select(records, attack=attack)
        clean = {r["seed"]: r.get("clean_model_hits", r.get("clean_model_rate")) for r in runs}
        if attack == "targeted":
            compared = "+".join(str(v) for v in clean.values() if v is not None)
        else:
            compared = summary(list(clean.values()), 100)
        rate = summary([r["rate"] for r in runs if r["rate"]], 100, 2)
        lines.append(f"| {attack} | {rate} % | " + " | ".join(cells) + f" | {compared} |")
    lines += ["", "*Published*, on other data: " + "; ".join(f"[{k}] {source}" for source, k in sources.items()) + "."]
    return "\n".join(lines)


UTILITY = (
    ("zero_shot_top1", "zero-shot, %", 100, 1),
    ("linear_probe/scenes", "probe: scenes, %", 100, 1),
    ("linear_probe/digits", "probe: digits, %", 100, 1),
    ("linear_probe/letters", "probe: letters, %", 100, 1),
    ("image_to_text_recall_at_1", "image-to-text R@1, %", 100, 1),
    ("text_to_image_recall_at_1", "text-to-image R@1, %", 100, 1),
    ("backdoor_z_score", "backdoor z-score", 1, 1),
    ("poison_auroc", "poison AUROC", 1, 3),
    ("poison_recall", "poison flagged: recall", 1, 2),
    ("poison_precision", "poison flagged: precision", 1, 2),
    ("plan_mass_ratio/names", "names' mass on object / chance: plan", 1, 2),
    ("cosine_mass_ratio/names", "names' mass on object / chance: cosine", 1, 2),
    ("plan_pointing_accuracy", "plan pointing, %", 100, 1),
    ("seconds_per_epoch", "seconds per epoch", 1, 0),
    ("core_seconds_per_epoch", "core-seconds per epoch", 1, 0),
    ("seconds_until_safe", "seconds until accurate and safe", 1, 0),
)


def utility_table(records: list[dict]) -> str:
    """Markdown: what a defence costs, over all its poisoned runs; beside them the clean, undefended model."""
    columns = {"clean CLIP": select(records, attack="none", defense="clip")}
    for defense in order(records, "defense"):
        columns[DEFENSE_NAMES[defense]] = [r for r in select(records, defense=defense) if r["attack"] != "none"]
    columns = {name: runs for name, runs in columns.items() if runs}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines.append("| runs | " + " | ".join(str(len(runs)) for runs in columns.values()) + " |")
    for key, label, factor, digits in UTILITY:
        cells = []
        for runs in columns.values():
            values = [r.get(key) for r in runs]
            cell = summary(values, factor, digits)
            if key == "seconds_until_safe" and None in values:
                cell = (cell + "; " if cell else "") + f"never in {values.count(None)}"
            cells.append(cell)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims(records: list[dict]) -> str:
    """Markdown: what the papers claim, and whether it holds on our data. A claim holds if it does in *every* run."""
    lines = ["| claim | here | holds |", "|---|---|---|"]
    backdoors = [a for a in order(records, "attack") if a not in ("targeted", "none")]

    def values(key: str, **where) -> list[float]:
        return [r[key] for r in select(records, **where) if r.get(key) is not None]

    def mean(key: str, **where) -> float:
        found = values(key, **where)
        return float(np.mean(found)) if found else float("nan")

    def state(claim: str, evidence: str, holds: bool | None) -> None:
        verdict = "not run" if holds is None else "yes" if holds else "**no**"
        lines.append(f"| {claim} | {evidence} | {verdict} |")

    for attack in backdoors:
        asr = values("attack_success_rate", attack=attack, defense="clip")
        state(f"undefended, {attack}: ASR at least 90 %", summary(asr, 100) + " %", min(asr) >= 0.9 if asr else None)
    hits = values("targets_hit", attack="targeted", defense="clip")
    state("undefended: targeted images hit (15 of 16 published)", summary(hits), min(hits) >= 15 if hits else None)
    for defense in ("safeclip", "otcclip"):
        hits = values("targets_hit", attack="targeted", defense=defense)
        state(f"{DEFENSE_NAMES[defense]}: no targeted image hit", summary(hits), max(hits) == 0 if hits else None)
        for attack in [a for a in backdoors if a != "adaptive" or defense == "otcclip"]:
            asr = values("attack_success_rate", attack=attack, defense=defense)
            most = 0.005 if attack == "adaptive" else 0.02
            claim = f"{DEFENSE_NAMES[defense]}, {attack}: ASR " + ("0 %" if attack == "adaptive" else "at most 2 %")
            state(claim, summary(asr, 100) + " %", max(asr) <= most if asr else None)
    clean = {"attack": "none", "defense": "clip"}
    for key, label in (("zero_shot_top1", "zero-shot"), ("linear_probe/digits", "probe on digits")):
        ours, theirs, best = mean(key, defense="otcclip"), mean(key, defense="roclip"), mean(key, **clean)
        evidence = f"{100 * ours:.1f} %; RoCLIP {100 * theirs:.1f} %; clean CLIP {100 * best:.1f} %"
        state(f"OTCCLIP's {label} above RoCLIP's", evidence, None if np.isnan(ours + theirs) else ours > theirs)
        near = None if np.isnan(ours + best) else ours >= best - 0.02
        state(f"OTCCLIP's {label} within 2 points of clean CLIP's", evidence, near)
    times = {d: select(records, defense=d) for d in ("otcclip", "safeclip", "roclip")}
    spent = {d: [r.get("seconds_until_safe") for r in runs] for d, runs in times.items()}
    evidence = "; ".join(
        f"{DEFENSE_NAMES[d]} {summary(v, 1, 0) or 'never'} s, in {len(v) - v.count(None)} of {len(v)}"
        for d, v in spent.items()
    )
    first = {d: np.mean([np.inf if x is None else x for x in v]) for d, v in spent.items() if v}
    holds = min(first, key=first.get) == "otcclip" and np.isfinite(first["otcclip"]) if len(first) == 3 else None
    state("OTCCLIP first at 95 % zero-shot and at most 2 % ASR, in every run", evidence, holds)
    pairs = [
        (r, select(records, attack=r["attack"], defense="clip", seed=r["seed"])[0])
        for r in select(records, defense="cleanclip")
        if r["attack"] in backdoors
    ]
    if pairs:
        asr = summary([r["attack_success_rate"] for r, _ in pairs], 100)
        lost = [before["zero_shot_top1"] - r["zero_shot_top1"] for r, before in pairs]
        cut = all(r["attack_success_rate"] < before["attack_success_rate"] / 2 for r, before in pairs)
        state("CleanCLIP at least halves every backdoor", f"ASR {asr} % afterwards", cut)
        state("... at under 1 point of zero-shot accuracy", f"costs {summary(lost, 100)} points", max(lost) < 0.01)
    return "\n".join(lines)


def ablation_table(records: list[dict]) -> str:
    """Markdown: OTCCLIP with one part missing at a time; mean and range over seeds."""
    keys = (
        "zero_shot_top1",
        "attack_success_rate",
        "targets_hit",
        "poison_auroc",
        "poison_recall",
        "linear_probe/digits",
    )
    keys += ("image_to_text_recall_at_1", "plan_mass_ratio/names", "core_seconds_per_epoch")
    rows = {key: (label, factor, digits) for key, label, factor, digits in UTILITY}
    rows |= {"attack_success_rate": ("BadNets ASR, %", 100, 1), "targets_hit": ("targets hit, of 16", 1, 1)}
    lines = ["| | seeds | " + " | ".join(rows[key][0] for key in keys) + " |", "|---|" + "---:|" * (len(keys) + 1)]
    for variant in order(records, "variant"):
        runs = select(records, variant=variant)
        cells = [summary([r.get(key) for r in runs], *rows[key][1:]) for key in keys]
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def into_readme(name: str, text: str, readme: Path) -> None:
    """Replace what stands in the README between ``<!-- name: written by make name -->`` and ``<!-- name ends -->``."""
    begin, end = f"<!-- {name}: written by make {name} -->", f"<!-- {name} ends -->"
    head, rest = readme.read_text().split(begin)
    part = readme.with_suffix(".part")
    part.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
    os.replace(part, readme)


def machine() -> str:
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def main(arguments: list[str] | None = None) -> None:
    import otclib
    from otclib import plots

    p = argparse.ArgumentParser(prog="python -m otclib.results", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("runs/seeds"))
    p.add_argument("--figures", type=Path, default=Path("figures"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    a = p.parse_args(arguments)
    runs = []
    for seed in a.seeds:
        pairs = otclib.data.load("scenes", seed=seed)
        planned = [otclib.attacks.load("targeted"), otclib.attacks.load("badnets")]
        poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
        made = otclib.train_each(poisoned, a.systems, manifest=manifest, out=a.out / f"seed{seed}", seed=seed)
        runs += made.values()
    records = [{**read(run), "machine": machine()} for run in runs]
    a.figures.mkdir(parents=True, exist_ok=True)
    otclib.training.write_json(a.figures / "seeds.json", records)
    (a.figures / "seeds.md").write_text(table(records) + "\n")
    plots.comparison(grouped(records)).savefig(a.figures / "comparison.png", dpi=150)
    print(table(records))


if __name__ == "__main__":
    main()
