"""Our figures beside the published ones: the tables of every system under every attack, and the papers' claims."""

from __future__ import annotations

from otclib.plots import NAME, planted
from otclib.results import made_by, order, select, summary

# What was published, with its source. Their data, models and rates are not ours: to be read beside our figures, not
# against them. (defence, attack): (figure, source); "backdoors" stands for any of them.
PUBLISHED = {
    ("clip", "targeted"): ("93.75 %, i.e. 15/16", "SafeCLIP and RoCLIP, abstracts; CC3M"),
    ("clip", "backdoors"): ("up to 100 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("clip", "badnets"): ("99.9 %", "attack-cleanclip, src/results.txt; CC3M"),
    ("clip", "wanet"): ("96.3 %", "SafeCLIP's development notebooks; CC1M, epoch 20"),
    ("roclip", "targeted"): ("12.5 %, i.e. 2/16", "RoCLIP, abstract; 1M pairs of CC3M in its code"),
    ("roclip", "backdoors"): ("0 %", "RoCLIP, abstract; 1M pairs of CC3M in its code"),
    ("safeclip", "targeted"): ("0 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("safeclip", "backdoors"): ("0 %", "SafeCLIP, abstract; CC3M, VG, COCO"),
    ("cleanclip", "blended"): ("7.2 %", "CleanCLIP, utils/asr_hyper.py, weight 1; CC3M"),
    ("otcclip", "targeted"): ("0 % in most cases", "OTCCLIP, abstract (ACL anthology)"),
    ("otcclip", "adaptive"): ("0 %", "a third party's summary of OTCCLIP, unverified; another adaptive attack"),
    ("otcclip", "backdoors"): ("0 % in most cases", "OTCCLIP, abstract (ACL anthology)"),
}
ACCURACY = {  # published zero-shot on ImageNet, %
    "clip": ("19.2", "attack-cleanclip, src/results.txt: trained on 3M poisoned pairs of CC3M"),
    "cleanclip": ("18.1", "CleanCLIP, utils/asr_hyper.py, weight 1: the same, cleaned"),
}


def success(runs: list[dict]) -> str:
    """The attack's success in a cell: hits of the targets, or ASR in %; how many seeds, if fewer than three."""
    few = f", {len(runs)} seed{'s' * (len(runs) > 1)}" if 0 < len(runs) < 3 else ""
    if runs and "targets_hit" in runs[0]:
        return "+".join(str(r["targets_hit"]) for r in runs) + f" of {runs[0]['targets']} each" + few
    return summary([r.get("attack_success_rate") for r in runs], 100) + few


def attack_table(records: list[dict]) -> str:
    """Markdown: what the attacker got. A row per attack, a column per defence; published figures in italics."""
    defenses = order(records, "defense")
    names = [NAME.get(d, d) for d in defenses]
    lines = ["| attack | planted | " + " | ".join(names) + " | clean model |"]
    lines.append("|---|---:|" + "---:|" * (len(defenses) + 1))
    sources: dict[str, int] = {}

    def cited(defense: str, attack: str) -> str:
        figure, source = PUBLISHED.get((defense, attack), ("", ""))
        return f"*{figure}* [{sources.setdefault(source, len(sources) + 1)}]" if figure else ""

    for attack in order(records, "attack"):
        if attack == "none":
            continue
        cells = []
        for defense in defenses:
            cell = success(select(records, attack=attack, defense=defense)) or "not run"
            cells.append("<br>".join(filter(None, (cell, cited(defense, attack)))))
        runs = select(records, attack=attack)
        by_seed = {r["seed"]: r for r in runs}.values()
        if attack == "targeted":
            clean = "+".join(str(r["clean_model_hits"]) for r in by_seed if "clean_model_hits" in r)
        else:
            clean = summary([r.get("clean_model_rate") for r in by_seed], 100)
        rate = summary([r["rate"] for r in runs if r["rate"]], 100, 2)
        lines.append(f"| {attack} | {rate} % | " + " | ".join(cells) + f" | {clean} |")
    general = [cited(defense, "backdoors") for defense in defenses]
    lines.append("| *published, backdoors in general* | | " + " | ".join(general) + " | |")
    lines += ["", "*Published*, on other data: " + "; ".join(f"[{k}] {source}" for source, k in sources.items()) + "."]
    return "\n".join(lines)


def triggered_table(records: list[dict]) -> str:
    """Markdown: how many triggered images are still called what they show. An attack that fails may yet do harm."""
    defenses = order(records, "defense")
    names = [NAME.get(d, d) for d in defenses]
    lines = ["| attack | clean model | " + " | ".join(names) + " |", "|---|" + "---:|" * (len(defenses) + 1)]
    for attack in order(records, "attack"):
        if attack in ("none", "targeted"):
            continue
        runs = select(records, attack=attack)
        by_seed = {r["seed"]: r for r in runs}.values()
        cells = [summary([r.get("clean_model_triggered_top1") for r in by_seed], 100)]
        cells += [summary([r.get("triggered_top1") for r in select(runs, defense=d)], 100) for d in defenses]
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


UTILITY = (
    ("zero_shot_top1", "zero-shot, %", 100, 1),
    ("linear_probe/scenes", "probe: scenes, %", 100, 1),
    ("linear_probe/digits", "probe: digits, %", 100, 1),
    ("linear_probe/letters", "probe: letters, %", 100, 1),
    ("image_to_text_recall_at_1", "image-to-text R@1, %", 100, 1),
    ("text_to_image_recall_at_1", "text-to-image R@1, %", 100, 1),
    ("backdoor_z_score", "backdoor z-score", 1, 1),
    ("clean_model_z_score", "... of the clean model", 1, 1),
    ("poison_auroc", "poison AUROC", 1, 3),
    ("poison_recall", "poison flagged: recall", 1, 2),
    ("poison_precision", "poison flagged: precision", 1, 2),
    ("plan_mass_ratio/names", "names' mass on object / chance: plan", 1, 2),
    ("cosine_mass_ratio/names", "names' mass on object / chance: cosine", 1, 2),
    ("mass_chance", "pointing, %: chance", 100, 1),
    ("plan_pointing_accuracy", "pointing, %: plan", 100, 1),
    ("cosine_pointing_accuracy", "pointing, %: cosine", 100, 1),
    ("seconds_per_epoch", "seconds per epoch", 1, 0),
    ("core_seconds_per_epoch", "core-seconds per epoch", 1, 0),
    ("seconds_total", "core-seconds in all", 1, 0),
    ("seconds_until_safe", "core-seconds until accurate and safe", 1, 0),
)


def utility_table(records: list[dict]) -> str:
    """Markdown: what a defence costs, over all its poisoned runs; beside them the clean, undefended model.

    Pointing's *chance* is what a place taken at random would reach: the share of the image that the word's box covers.
    """
    columns = {"clean CLIP": select(records, attack="none", defense="clip")}
    for defense in order(records, "defense"):
        columns[NAME.get(defense, defense)] = [r for r in select(records, defense=defense) if r["attack"] != "none"]
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
        if key == "zero_shot_top1":
            named = {NAME.get(defense, defense): f"*{figure}*" for defense, (figure, _) in ACCURACY.items()}
            lines.append("| *published, ImageNet* | " + " | ".join(named.get(name, "") for name in columns) + " |")
    sources = "; ".join(f"{NAME[defense]}: {source}" for defense, (_, source) in ACCURACY.items())
    return "\n".join([*lines, "", f"*Published*, on other data: {sources}."])


def claims(records: list[dict]) -> str:
    """Markdown: what the papers claim, and whether it holds on our data. A claim holds if it does in *every* run.

    Systems are compared run by run: under the same attack, with the same seed.
    """
    lines = ["| claim | whose | here | holds |", "|---|---|---|---|"]
    backdoors = [a for a in order(records, "attack") if a not in ("none", "targeted")]

    def state(claim: str, whose: str, evidence: str, verdicts: list[bool]) -> None:
        verdict = "yes" if all(verdicts) else f"**no** ({sum(verdicts)} of {len(verdicts)})"
        if not verdicts:
            verdict = "undecided" if evidence else "not run"
        lines.append(f"| {claim} | {whose} | {evidence} | {verdict} |")

    def values(key: str, **where) -> list[float]:
        return [r[key] for r in select(records, **where) if r.get(key) is not None]

    def beside(defense: str, other: str, key: str) -> list[tuple]:
        """Values of two systems, run by run; of ``clean``, those of the undefended model without poison."""
        out = []
        for r in select(records, defense=defense):
            clean = {"defense": "clip", "attack": "none"}
            where = clean if other == "clean" else {"defense": other, "attack": r["attack"]}
            out += [(r[key], o[key]) for o in select(records, seed=r["seed"], **where) if key in r and key in o]
        return out

    def against(both: list[tuple], factor: float = 100) -> str:
        return " against ".join(summary(column, factor) for column in zip(*both))

    hits = values("targets_hit", attack="targeted", defense="clip")
    state("undefended: 15 of 16 targeted images hit", "RoCLIP, SafeCLIP", summary(hits), [h >= 15 for h in hits])
    for attack in backdoors:
        asr = values("attack_success_rate", attack=attack, defense="clip")
        state(f"undefended, {attack}: ASR at least 90 %", "our condition", summary(asr, 100), [v >= 0.9 for v in asr])
    for defense, most, whose in (
        ("roclip", 2, "its abstract (2 of 16; 0 %)"),
        ("safeclip", 0, "its abstract (0 %)"),
        ("otcclip", 0, "ours, attack by attack"),
    ):
        name = NAME[defense]
        hits = values("targets_hit", attack="targeted", defense=defense)
        few = f"at most {most} of 16 targeted images" if most else "no targeted image"
        state(f"{name}: {few} hit", whose, summary(hits), [h <= most for h in hits])
        for attack in [a for a in backdoors if a != "adaptive"]:
            asr = values("attack_success_rate", attack=attack, defense=defense)
            evidence = summary(asr, 100)
            state(f"{name}, {attack}: ASR at most 2 %", whose, evidence, [v <= 0.02 for v in asr])
    stopped = {
        attack: all((r.get("attack_success_rate") or 0) <= 0.02 and not r.get("targets_hit") for r in runs)
        for attack in ["targeted", *backdoors]
        if (runs := select(records, defense="otcclip", attack=attack))
    }
    if stopped:
        evidence = f"in {sum(stopped.values())} of {len(stopped)} attacks no target is hit, ASR at most 2 %"
        most = sum(stopped.values()) > len(stopped) / 2
        state(f"{NAME['otcclip']}: success 0 % in most cases", "its abstract", evidence, [most])
    asr = values("attack_success_rate", attack="adaptive", defense="otcclip")
    whose = "a third party's summary (0 %; another adaptive attack)"
    state("OTCCLIP, adaptive: ASR at most 0.5 %", whose, summary(asr, 100), [v <= 0.005 for v in asr])
    probes = [(f"linear_probe/{name}", f"probe on {name}") for name in ("scenes", "digits", "letters")]
    for key, label in [("zero_shot_top1", "zero-shot"), *probes]:
        for other in ("roclip", "safeclip"):
            both = beside("otcclip", other, key)
            state(f"OTCCLIP's {label} above {NAME[other]}'s", "its abstract", against(both), [x > y for x, y in both])
        both = beside("otcclip", "clean", key)
        within = [x >= y - 0.02 for x, y in both]
        state(f"OTCCLIP's {label} within 2 points of clean CLIP's", "ours", against(both), within)
    for other in ("safeclip", "roclip"):
        both = beside("otcclip", other, "seconds_until_safe")
        ours, theirs = (sum(pair[k] is not None for pair in both) for k in (0, 1))
        neither = both.count((None, None))
        sooner = [x is not None and (y is None or x < y) for x, y in both if (x, y) != (None, None)]
        evidence = f"reached in {ours} against {theirs} of {len(both)} runs, by neither in {neither}" if both else ""
        state(f"OTCCLIP accurate and safe sooner than {NAME[other]}", "a third party's summary", evidence, sooner)
    both = [(x, y) for x, y in beside("cleanclip", "clip", "attack_success_rate") if y is not None]
    state("CleanCLIP at least halves a backdoor", "ours", against(both), [x <= y / 2 for x, y in both])
    lost = [y - x for x, y in beside("cleanclip", "clip", "zero_shot_top1")]
    state("... at under 1 point of zero-shot accuracy", "ours", summary(lost, 100), [v < 0.01 for v in lost])
    return "\n".join(lines)


def report(records: list[dict]) -> str:
    """The tables of ``figures/results.md`` and the README, the long ones in a fold."""
    machines, precisions = "; ".join(order(records, "machine")), ", ".join(order(records, "precision"))
    return "\n\n".join(
        [
            f"{len(records)} runs on {machines}, in {precisions}, one core each. A cell of fewer than 3 seeds says so. "
            f"Made by {made_by(records)}.",
            "What the attacker got (ASR in %, or images hit), mean and range over seeds. *Planted*: poison in % of the "
            "pairs. *Clean model*: what a model that never saw poison calls the target.",
            attack_table(records),
            fold("Triggered images that are still called what they show, in %", triggered_table(records)),
            fold(
                "What the defences cost: accuracy, retrieval, grounding, seconds",
                "Over all their poisoned runs. *Accurate and safe*: from then on zero-shot at least 95 %, ASR at most "
                "2 % and no target hit. CleanCLIP is given 2,000 clean pairs, which the others do not have, and its "
                "time includes that of the model which it cleans.\n\n" + utility_table(records),
            ),
            fold(
                "The papers' claims, each on our data",
                "A claim holds if it does in every run that it speaks of.\n\n" + claims(records),
            ),
        ]
    )


def fold(title: str, text: str) -> str:
    """Markdown behind a title that opens it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


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
    lines += ["", f"Made by {made_by(records)}."]
    return "\n".join(lines)


def dose_table(records: list[dict]) -> str:
    """Markdown: how much poison gives how much success, undefended; mean and range over seeds."""
    heads = ("triggered pairs", "% of all", "BadNets ASR, %", "copies per image", "targets hit, of 16")
    heads += ("zero-shot, %", "seeds")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    for dose in sorted({r["dose"] for r in records}):
        runs = select(records, dose=dose)
        amount = planted(runs[0])
        share = summary([r["poison_rate/badnets"] for r in runs], 100, 2)
        asr, hits, accuracy = (
            summary([r.get(key) for r in runs], factor)
            for key, factor in (("attack_success_rate", 100), ("targets_hit", 1), ("zero_shot_top1", 100))
        )
        cells = (amount["pairs"], share, asr, amount["copies"], hits, accuracy, len(runs))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", f"Made by {made_by(records)}."]
    return "\n".join(lines)
