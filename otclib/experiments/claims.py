"""The papers' claims, each checked on our data."""

from __future__ import annotations

from otclib.defenses import look
from otclib.experiments.records import beside, markdown, order, select
from otclib.metrics import summary


def claims(records: list[dict]) -> str:
    """Return a Markdown table of the papers' claims on our data. A claim holds if it holds in *every* run.

    Systems are compared run by run: under the same attack, with the same seed.
    """
    rows = []
    triggered = {r["attack"] for r in records if r.get("attack_success_rate") is not None} - {"none"}
    backdoors = [a for a in order(records, "attack") if a in triggered]

    def state(claim: str, whose: str, evidence: str, verdicts: list[bool]) -> None:
        verdict = "yes" if all(verdicts) else f"**no** ({sum(verdicts)} of {len(verdicts)})"
        if not verdicts:
            verdict = "undecided" if evidence else "not run"
        rows.append([claim, whose, evidence, verdict])

    def values(key: str, **where: object) -> list[float]:
        return [r[key] for r in select(records, **where) if r.get(key) is not None]

    def compared(defense: str, other: str, key: str) -> list[tuple]:
        """Return the values of two systems, run by run; ``clean`` is the undefended model without poison."""
        partner = {"defense": "clip", "attack": "none"} if other == "clean" else {"defense": other}
        return beside(records, defense, partner, key)

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
        name = look(defense).label
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
        state(f"{look('otcclip').label}: success 0 % in most cases", "its abstract", evidence, [most])
    asr = values("attack_success_rate", attack="adaptive", defense="otcclip")
    whose = "a third party's summary (0 %; another adaptive attack)"
    state("OTCCLIP, adaptive: ASR at most 0.5 %", whose, summary(asr, 100), [v <= 0.005 for v in asr])
    probes = [(f"linear_probe/{name}", f"probe on {name}") for name in ("scenes", "digits", "letters")]
    for key, label in [("zero_shot_top1", "zero-shot"), *probes]:
        for other in ("roclip", "safeclip"):
            both = compared("otcclip", other, key)
            state(
                f"OTCCLIP's {label} above {look(other).label}'s",
                "its abstract",
                against(both),
                [x > y for x, y in both],
            )
        both = compared("otcclip", "clean", key)
        within = [x >= y - 0.02 for x, y in both]
        state(f"OTCCLIP's {label} within 2 points of clean CLIP's", "ours", against(both), within)
    for other in ("safeclip", "roclip"):
        both = compared("otcclip", other, "seconds_until_safe")
        ours, theirs = (sum(pair[k] is not None for pair in both) for k in (0, 1))
        neither = both.count((None, None))
        sooner = [x is not None and (y is None or x < y) for x, y in both if (x, y) != (None, None)]
        evidence = f"reached in {ours} against {theirs} of {len(both)} runs, by neither in {neither}" if both else ""
        state(f"OTCCLIP accurate and safe sooner than {look(other).label}", "a third party's summary", evidence, sooner)
    both = [(x, y) for x, y in compared("cleanclip", "clip", "attack_success_rate") if y is not None]
    state("CleanCLIP at least halves a backdoor", "ours", against(both), [x <= y / 2 for x, y in both])
    lost = [y - x for x, y in compared("cleanclip", "clip", "zero_shot_top1")]
    state("... at under 1 point of zero-shot accuracy", "ours", summary(lost, 100), [v < 0.01 for v in lost])
    return markdown(rows, ["claim", "whose", "here", "holds"], left=4)
