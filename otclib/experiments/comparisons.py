"""Tables that set systems side by side: on several data sets, against several attacks in one set, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from otclib import metrics
from otclib.defenses import DEFENSES, look
from otclib.experiments.records import (
    beside,
    difference,
    explained,
    made_by,
    markdown,
    measured,
    metric_table,
    order,
    select,
)
from otclib.experiments.tables import planted, variants_table

WORLDS = (
    "zero_shot_top1",
    "attack_success_rate",
    "targets_hit",
    "poison_kept",
    "clean_kept",
    "poison_auroc",
)
DIFFERENCES = (
    "zero_shot_top1",
    "attack_success_rate",
    "targets_hit",
    "linear_probe/digits",
    "linear_probe/letters",
    "image_to_text_recall_at_1",
    "plan_pointing_accuracy",
)
HEADLINE = ("zero_shot_top1", "image_to_text_recall_at_1", "core_seconds_per_epoch")
CONTROLS = (*DIFFERENCES, "core_seconds_per_epoch")
JUDGED = ("poison_auroc", "poison_recall", "poison_precision")


def each_attack(records: list[dict]) -> str:
    """Return Markdown tables of several attacks in one set: what each got, who was left out, and ``worlds_table``."""
    defenses, success, judged = order(records, "defense"), [], []
    for dataset in order(records, "dataset"):
        here = select(records, dataset=dataset)
        for kind in kinds(here):
            metric = metrics.of("targets_hit" if kind == "targeted" else f"attack_success_rate/{kind}")
            pairs = metrics.summary(sorted({r[f"poison_count/{kind}"] for r in here}), digits=0)
            cells = [measured(metric, select(here, defense=defense)) for defense in defenses]
            success.append([dataset, kind, pairs, *cells])
            for defense in defenses:
                found = [metrics.of(f"{key}/{kind}") for key in JUDGED]
                cells = [metric.summary(r.get(metric.key) for r in select(here, defense=defense)) for metric in found]
                if cells[1]:  # a system that leaves pairs out
                    judged.append([dataset, kind, look(defense).label, *cells])
    heads = ["data set", "attack", "pairs", *(look(defense).label for defense in defenses)]
    said = "Success of each attack: ASR in %, of the targeted one the targets hit of 16. Mean and range over seeds."
    parts = [said, explained(markdown(success, heads, left=2))]
    if judged:
        parts += [
            "What the judgement finds, at each system's own threshold. *AUROC*: of the distance after the training. "
            "*Recall*: the share of the attack's pairs that are left out or re-matched. "
            "*Precision*: of all pairs of this attack and all clean pairs that are left out or re-matched, the share "
            "that are of this attack. OTCCLIP plus draws one of several copies of an image in each epoch, and the "
            "others count as left out.",
            markdown(judged, ["data set", "attack", "system", "AUROC", "recall", "precision"], left=3),
        ]
    return "\n\n".join([*parts, "The runs as a whole:", worlds_table(records)])


def kinds(records: list[dict]) -> list[str]:
    """Return the kinds of the attacks that were planted together."""
    return [key.split("/")[1] for key in records[0] if key.startswith("poison_count/")]


def headline(records: list[dict], dataset: str = "emoji-scenes") -> str:
    """Return the README's Markdown table: what several attacks in one set got from today's systems, and the cost."""
    here = select(records, dataset=dataset)
    attacks = [f"attack_success_rate/{kind}" for kind in kinds(here) if kind != "targeted"]
    columns = {
        look(defense).label: select(here, defense=defense) for defense in order(here, "defense") if defense in DEFENSES
    }
    return metric_table(columns, [*attacks, "targets_hit", *HEADLINE])


def worlds_table(records: list[dict]) -> str:
    """Return Markdown tables of each system on each data set and dose, and of the differences of every two systems.

    Every later system minus every earlier one, in the order of the records.
    """
    found, rows = [metrics.of(key) for key in WORLDS], []
    for dataset in order(records, "dataset"):
        for attack in order(records, "attack"):
            for defense in order(records, "defense"):
                if runs := select(records, dataset=dataset, attack=attack, defense=defense):
                    cells = [measured(metric, runs) for metric in found]
                    dose = planted(runs) if any(r["rate"] for r in runs) else ""
                    rows.append([dataset, attack, dose, look(defense).label, *cells, len(runs)])
    heads = ["data set", "dose", "planted", "system", *(metric.title for metric in found), "seeds"]
    parts = [explained(markdown(rows, heads, left=4))]
    for other, defense in combinations(order(records, "defense"), 2):
        if differences := differences_table(records, defense, other, DIFFERENCES):
            said = f"{look(defense).label} minus {look(other).label}, on the same seeds: mean difference"
            parts += [f"{said}, and its 95 % interval by Student's t (shares in points).", differences]
    return "\n\n".join([*parts, f"Made by {made_by(records)}."])


def differences_table(records: list[dict], defense: str, other: str, keys: Sequence[str]) -> str:
    """Return a Markdown table of one system minus another on the same seeds, for each data set and attack.

    A cell is ``records.difference``. A seed that only one of them has is left out. Without a common seed the table is
    empty text.
    """
    found, rows = [metrics.of(key) for key in keys], []
    for dataset in order(records, "dataset"):
        for attack in order(records, "attack"):
            if pairs := beside(records, {"defense": other}, defense=defense, dataset=dataset, attack=attack):
                rows.append([dataset, attack, *(difference(metric, pairs) for metric in found), len(pairs)])
    heads = ["data set", "dose", *(metric.label for metric in found), "seeds"]
    return markdown(rows, heads, left=2) if rows else ""


def controls_table(records: list[dict], full: str = "full") -> str:
    """Return Markdown tables of the variants on each data set, and of their differences to the variant ``full``."""
    keys = [*CONTROLS, *(key for key in records[0] if key.startswith("attack_success_rate/"))]
    found, parts = [metrics.of(key) for key in keys], []
    for dataset in order(records, "dataset"):
        here, rows = select(records, dataset=dataset), {}
        for variant in order(here, "variant"):
            pairs = beside(here, {"variant": full}, variant=variant)
            if pairs and variant != full:
                rows[variant] = [len(pairs), *(difference(metric, pairs) for metric in found)]
        parts += [f"## {dataset}", f"Planted: {planted(here)}.", variants_table(here, keys)]
        if rows:
            said = (
                f"Minus *{full}*, on the same seeds: mean difference, and its 95 % interval by Student's t (shares in "
            )
            parts += [f"{said}points). The intervals are not corrected for their number."]
            parts += [markdown(rows, ["seeds", *(metric.label for metric in found)])]
    return explained("\n\n".join(parts)) + f"\n\nMade by {made_by(records)}."
