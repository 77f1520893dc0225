"""The tables of every system under every attack, with our figures beside the published ones.

``published.yaml`` has the published figures, each with its source. They come from other data, models and rates, so they
are context and not a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from otclib import metrics
from otclib.defenses import look
from otclib.experiments.claims import claims
from otclib.experiments.records import (
    explained,
    made_by,
    markdown,
    measured,
    metric_table,
    order,
    select,
)
from otclib.figures.systems import amount_planted

COSTS = (  # of the table of what the defences cost
    "zero_shot_top1",
    "linear_probe/scenes",
    "linear_probe/digits",
    "linear_probe/letters",
    "image_to_text_recall_at_1",
    "text_to_image_recall_at_1",
    "backdoor_z_score",
    "clean_model_z_score",
    "poison_auroc",
    "poison_recall",
    "poison_precision",
    "plan_mass_ratio/names",
    "cosine_mass_ratio/names",
    "mass_chance",
    "plan_pointing_accuracy",
    "cosine_pointing_accuracy",
    "seconds_per_epoch",
    "core_seconds_per_epoch",
    "seconds_total",
)
ABLATED = (
    "zero_shot_top1",
    "attack_success_rate",
    "targets_hit",
    "poison_auroc",
    "poison_recall",
    "linear_probe/digits",
    "image_to_text_recall_at_1",
    "plan_mass_ratio/names",
    "core_seconds_per_epoch",
)


@cache
def published() -> dict:
    """Return ``success``: {defence: {attack or ``backdoors``: [figure, source]}} and ``accuracy``: {defence: ...}."""
    return yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())


def success(runs: list[dict]) -> str:
    """Return a cell's attack success: targets hit, or ASR in %; its bound; the number of seeds if fewer than three."""
    few = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if 0 < len(runs) < 3 else ""
    if runs and "targets_hit" in runs[0]:
        hits = "+".join(str(r["targets_hit"]) for r in runs) + f" of {runs[0]['targets']} each"
        return ", ".join(filter(None, (hits, metrics.at_most("targets_hit", runs)))) + few
    return measured(metrics.of("attack_success_rate"), runs) + few


def attack_table(records: list[dict]) -> str:
    """Return a Markdown table of attack success: a row per attack, a column per defence, published ones in italics."""
    defenses = order(records, "defense")
    sources: dict[str, int] = {}

    def cited(defense: str, attack: str) -> str:
        figure, source = published()["success"].get(defense, {}).get(attack, ("", ""))
        return f"*{figure}* [{sources.setdefault(source, len(sources) + 1)}]" if figure else ""

    rows = {}
    for attack in order(records, "attack"):
        if attack == "none":
            continue
        runs, cells = select(records, attack=attack), []
        for defense in defenses:
            cell = success(select(runs, defense=defense)) or "not run"
            cells.append("<br>".join(filter(None, (cell, cited(defense, attack)))))
        by_seed = list({r["seed"]: r for r in runs}.values())
        if any("targets_hit" in r for r in runs):
            clean = "+".join(str(r["clean_model_hits"]) for r in by_seed if "clean_model_hits" in r)
        else:
            clean = metrics.of("clean_model_rate").summary(r.get("clean_model_rate") for r in by_seed)
        rows[attack] = [planted(runs), *cells, clean]
    general = [cited(defense, "backdoors") for defense in defenses]
    rows["*published, backdoors in general*"] = ["", *general, ""]
    heads = ["planted", *(look(d).label for d in defenses), "clean model"]
    cited_here = "; ".join(f"[{k}] {source}" for source, k in sources.items())
    return f"{explained(markdown(rows, heads))}\n\n*Published*, on other data: {cited_here}."


def planted(runs: list[dict]) -> str:
    """Return the dose of some runs in words: planted pairs, where they are recorded, and their share of all pairs."""
    counts = [sum(v for k, v in r.items() if k.startswith("poison_count/")) for r in runs]
    rate = metrics.summary([r["rate"] for r in runs if r["rate"]], 100, 2)
    pairs = metrics.summary([n for n in counts if n])
    return f"{pairs} pairs, {rate} %" if pairs else f"{rate} %"


def triggered_table(records: list[dict]) -> str:
    """Return a Markdown table of the triggered images that are still called what they show.

    An attack that misses its target can still do harm.
    """
    defenses, metric = order(records, "defense"), metrics.of("triggered_top1")
    rows = {}
    for attack in order(records, "attack"):
        runs = select(records, attack=attack)
        if attack == "none" or all(r.get(metric.key) is None for r in runs):  # an attack without a trigger
            continue
        by_seed = {r["seed"]: r for r in runs}.values()
        cells = [metric.summary(r.get("clean_model_triggered_top1") for r in by_seed)]
        rows[attack] = cells + [metric.summary(r.get(metric.key) for r in select(runs, defense=d)) for d in defenses]
    return markdown(rows, ["clean model", *(look(d).label for d in defenses)])


def utility_table(records: list[dict]) -> str:
    """Return a Markdown table of a defence's costs over all its poisoned runs, beside the clean, undefended model."""
    columns = {"clean CLIP": select(records, attack="none", defense="clip")}
    for defense in order(records, "defense"):
        columns[look(defense).label] = [r for r in select(records, defense=defense) if r["attack"] != "none"]
    columns = {name: runs for name, runs in columns.items() if runs}
    accuracy = {look(defense).label: found for defense, found in published()["accuracy"].items()}
    safe = {name: [r.get("seconds_until_safe") for r in runs] for name, runs in columns.items()}
    rows: dict[str, list] = {
        "runs": [len(runs) for runs in columns.values()],
        "*zero-shot on ImageNet, published, %*": [f"*{accuracy[n][0]}*" if n in accuracy else "" for n in columns],
        "core-seconds until accurate and safe": [_until(values) for values in safe.values()],
    }
    sources = "; ".join(f"{name}: {source}" for name, (_, source) in accuracy.items())
    table = metric_table(columns, COSTS) + "\n" + "\n".join(markdown(rows, list(columns)).splitlines()[2:])
    return f"{table}\n\n*Published*, on other data: {sources}."


def _until(values: list[float | None]) -> str:
    """Return mean and range of the seconds until runs were accurate and safe, and the number that never were."""
    there, never = metrics.of("seconds_until_safe").summary(values), values.count(None)
    return "; ".join(filter(None, (there, f"never in {never}" if never else "")))


def report(records: list[dict]) -> str:
    """Return the text of the page of all systems."""
    machines, precisions = "; ".join(order(records, "machine")), ", ".join(order(records, "precision"))
    return "\n\n".join(
        [
            f"{len(records)} runs on {machines}, in {precisions}, one core each. A cell of fewer than 3 seeds says so. "
            f"Made by {made_by(records)}.",
            "## What the attacker got",
            "ASR in %, or targeted images hit: mean and range over seeds. *Planted*: poison in % of the pairs. *Clean "
            "model*: what a model that never saw poison calls the target.",
            attack_table(records),
            "## Triggered images that are still called what they show, in %",
            triggered_table(records),
            "## What the defences cost",
            "Over all their poisoned runs. *Accurate and safe*: from then on zero-shot accuracy is at least 95 %, ASR "
            "at most 2 %, and no target is hit. CleanCLIP gets 2,000 clean pairs, which the others do not have. Its "
            "time includes that of the model which it cleans. *By chance*: the share of the image that a word's box "
            "covers.",
            utility_table(records),
            "## The papers' claims, each on our data",
            "A claim holds in a seed if it does in every run of that seed. *Difference*: the first system minus the "
            "second, in points: the mean over seeds, of which each counts as the mean of its runs, and its 95 % "
            "interval by Student's t.",
            claims(records),
        ]
    )


def tuning_table(records: list[dict]) -> str:
    """Return a Markdown table of single runs on a tuning seed: what was planted, and what became of each attack."""
    rows = []
    for r in records:
        kinds = [key.split("/")[1] for key in r if key.startswith("poison_count/")]
        rates = {kind: r.get(f"attack_success_rate/{kind}", r.get("attack_success_rate")) for kind in kinds}
        asr = [f"{kind} {100 * rate:.1f}" for kind, rate in rates.items() if kind != "targeted" and rate is not None]
        kept = [f"{kind} {100 * r[f'poison_kept/{kind}']:.0f}" for kind in kinds if f"poison_kept/{kind}" in r]
        planted_pairs = ", ".join(f"{kind} {r[f'poison_count/{kind}']}" for kind in kinds)
        hits = f"{r['targets_hit']} of {r['targets']}" if "targets" in r else ""
        probes = [f"{100 * r[f'linear_probe/{name}']:.0f}" for name in ("digits", "letters")]
        cells = [
            f"{100 * r['zero_shot_top1']:.1f}",
            ", ".join(asr),
            hits,
            ", ".join(kept),
            f"{100 * r['clean_kept']:.0f}",
        ]
        rows.append([r["variant"], f"{r['dataset']}, {r['seed']}", planted_pairs, *cells, " and ".join(probes)])
    heads = [
        "system",
        "data set, seed",
        "planted, pairs",
        "zero-shot, %",
        "ASR, %",
        "targets",
        "kept, %",
        "clean kept, %",
    ]
    return f"{markdown(rows, [*heads, 'digits and letters, %'], left=3)}\n\nMade by {made_by(records)}."


def variants_table(records: list[dict], keys: Sequence[str]) -> str:
    """Return a Markdown table of the variants of a defence, a row for each; mean and range over seeds."""
    found, rows = [metrics.of(key) for key in keys], {}
    for variant in order(records, "variant"):
        runs = select(records, variant=variant)
        rows[variant] = [len(runs), *(measured(metric, runs) for metric in found)]
    return markdown(rows, ["seeds", *(metric.title for metric in found)])


def ablation_table(records: list[dict]) -> str:
    """Return a Markdown table of OTCCLIP with one part missing at a time."""
    return f"{explained(variants_table(records, ABLATED))}\n\nMade by {made_by(records)}."


def dose_table(records: list[dict]) -> str:
    """Return a Markdown table of attack success by the amount of poison, undefended; mean and range over seeds."""
    found, rows = [metrics.of(k) for k in ("attack_success_rate", "targets_hit", "zero_shot_top1")], []
    for dose in sorted({r["dose"] for r in records}):
        runs = select(records, dose=dose)
        asr, hits, accuracy = (measured(metric, runs) for metric in found)
        share, amount = metrics.summary([r["poison_rate/badnets"] for r in runs], 100, 2), amount_planted(runs[0])
        rows.append([amount["pairs"], share, asr, amount["copies"], hits, accuracy, len(runs)])
    heads = ["triggered pairs", "% of all", "BadNets ASR, %", "copies per image", "targets hit, of 16", "zero-shot, %"]
    return f"{explained(markdown(rows, [*heads, 'seeds'], left=0))}\n\nMade by {made_by(records)}."
