"""The papers' claims, each checked on our data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from otclib import metrics
from otclib.defenses import look
from otclib.experiments.records import beside, difference, explained, markdown, measured, order, select

OTCCLIP = ("otcclip", "otcclip-plus", "earlier OTCCLIP")  # the abstract's parts alone, with ours, and with ours before


def claims(records: list[dict]) -> str:
    """Return a Markdown table of the papers' claims on our data, with the number of seeds in which each holds.

    A claim holds in a seed if it does in *every* run of that seed. Systems are compared run by run: under the same
    attack, with the same seed. The difference of two systems is the mean over seeds of the first minus the second, with
    its interval (``records.difference``). It is empty for seconds until safe, which some runs never reach.
    """
    rows = []
    triggered = {r["attack"] for r in records if r.get("attack_success_rate") is not None} - {"none"}
    backdoors = [a for a in order(records, "attack") if a in triggered]

    def state(claim: str, whose: str, evidence: str, verdicts: Iterable[tuple[Any, bool]], apart: str = "") -> None:
        by_seed: dict[Any, list[bool]] = {}
        for seed, holds in verdicts:
            by_seed.setdefault(seed, []).append(holds)
        runs, seeds = [holds for each in by_seed.values() for holds in each], [all(each) for each in by_seed.values()]
        verdict = f"in {sum(seeds)} of {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        verdict += f" ({sum(runs)} of {len(runs)} runs)" if len(runs) > len(seeds) else ""
        if not runs:
            verdict = "undecided" if evidence else "not run"
        rows.append([claim, whose, evidence, apart, verdict if all(runs) else f"**{verdict}**"])

    def alone(
        claim: str, whose: str, key: str, defense: str, attack: str, least: float = 0, most: float = math.inf
    ) -> None:
        runs = [r for r in select(records, defense=defense, attack=attack) if r.get(key) is not None]
        state(claim, whose, measured(metrics.of(key), runs), [(r["seed"], least <= r[key] <= most) for r in runs])

    def compared(defense: str, other: str) -> list[tuple[dict, dict]]:
        """Return the runs of two systems, side by side; ``clean`` is the undefended model without poison."""
        partner = {"defense": "clip", "attack": "none"} if other == "clean" else {"defense": other}
        return beside(records, partner, defense=defense)

    def compare(
        claim: str, whose: str, defense: str, other: str, key: str, holds: Callable[[float, float], bool]
    ) -> None:
        metric, pairs = metrics.of(key), compared(defense, other)
        pairs = [(r, o) for r, o in pairs if None not in (r.get(key), o.get(key))]
        evidence = " against ".join(metric.summary(r[key] for r in side) for side in zip(*pairs))
        verdicts = [(r["seed"], holds(r[key], o[key])) for r, o in pairs]
        state(claim, whose, evidence, verdicts, difference(metric, pairs))

    recorded = [name for name in OTCCLIP if name in order(records, "defense")] or OTCCLIP[:1]
    asr, hits, accuracy = "attack_success_rate", "targets_hit", "zero_shot_top1"
    claim = "undefended: 15 of 16 targeted images hit"
    alone(claim, "RoCLIP, SafeCLIP", hits, "clip", "targeted", least=15)
    for attack in backdoors:
        alone(f"undefended, {attack}: ASR at least 90 %", "our condition", asr, "clip", attack, least=0.9)
    for defense, most, whose in (
        ("roclip", 2, "its abstract (2 of 16; 0 %)"),
        ("safeclip", 0, "its abstract (0 %)"),
        *((name, 0, "ours, attack by attack") for name in recorded),
    ):
        name = look(defense).label
        few = f"at most {most} of 16 targeted images" if most else "no targeted image"
        alone(f"{name}: {few} hit", whose, hits, defense, "targeted", most=most)
        for attack in [a for a in backdoors if a != "adaptive"]:
            alone(f"{name}, {attack}: ASR at most 2 %", whose, asr, defense, attack, most=0.02)
    probes = [(f"linear_probe/{name}", f"probe on {name}") for name in ("scenes", "digits", "letters")]
    for defense in recorded:
        name = look(defense).label
        ours = [r for r in select(records, defense=defense) if r["attack"] != "none"]
        stopped = [r for r in ours if (r.get(asr) or 0) <= 0.02 and not r.get(hits)]
        evidence = f"in {len(stopped)} of {len(ours)} runs no target is hit, ASR at most 2 %" if ours else ""
        most_of = [(k, 2 * len(select(stopped, seed=k)) > len(select(ours, seed=k))) for k in order(ours, "seed")]
        state(f"{name}: success 0 % in most cases", "its abstract", evidence, most_of)
        whose = "a third party's summary (0 %; another adaptive attack)"
        alone(f"{name}, adaptive: ASR at most 0.5 %", whose, asr, defense, "adaptive", most=0.005)
        for key, label in [(accuracy, "zero-shot"), *probes]:
            for other in ("roclip", "safeclip"):
                claim = f"{name}: {label} above {look(other).label}'s"
                compare(claim, "its abstract", defense, other, key, lambda x, y: x > y)
            claim = f"{name}: {label} within 2 points of clean CLIP's"
            compare(claim, "ours", defense, "clean", key, lambda x, y: x >= y - 0.02)
        for other in ("safeclip", "roclip"):
            key = "seconds_until_safe"
            pairs = [(r, o) for r, o in compared(defense, other) if key in r and key in o]
            both = [(r["seed"], r[key], o[key]) for r, o in pairs if (r[key], o[key]) != (None, None)]
            sooner = [(seed, x is not None and (y is None or x < y)) for seed, x, y in both]
            reached = [sum(run[key] is not None for run in side) for side in zip(*pairs)]
            said = "reached in {} against {} of {} runs, by neither in {}"
            evidence = said.format(*reached, len(pairs), len(pairs) - len(both)) if pairs else ""
            claim = f"{name}: accurate and safe sooner than {look(other).label}"
            state(claim, "a third party's summary", evidence, sooner)
    compare("CleanCLIP at least halves a backdoor", "ours", "cleanclip", "clip", asr, lambda x, y: x <= y / 2)
    claim = "... at under 1 point of zero-shot accuracy"
    compare(claim, "ours", "cleanclip", "clip", accuracy, lambda x, y: y - x < 0.01)
    return explained(markdown(rows, ["claim", "whose", "here", "difference", "holds"], left=5))
