"""What is made of records: tables, claims, and the pages of the book."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import yaml

from otclib import figures, metrics
from otclib.defenses import DEFENSES, look
from otclib.experiments import comparisons, options, pages, records, tables
from otclib.experiments.claims import claims
from otclib.runs import seconds_until_safe

ROOT = Path(__file__).parent.parent


def line(seconds, accuracy, asr=None, hits=0):
    return {"seconds": seconds, "zero_shot_top1": accuracy, "attack_success_rate": asr, "targets_hit": hits}


def test_seconds_until_safe_by_hand():
    good, bad = line(10, 0.96, 0.01), line(10, 0.96, 0.5)
    assert seconds_until_safe([good]) == 10
    assert seconds_until_safe([bad, bad, good, good]) == 30
    assert seconds_until_safe([bad, good, bad, good]) == 40, "it must stay so"
    assert seconds_until_safe([good, bad]) is None
    assert seconds_until_safe([line(10, 0.9, 0.0)]) is None
    assert seconds_until_safe([line(10, 0.99, None, hits=1)]) is None
    assert seconds_until_safe([bad, good], before=100) == 120


def test_the_table_of_controls_by_hand(tmp_path):
    """Two data sets, four variants. Seed 7 has no partner, and the second data set has no *full*."""

    def run(dataset, variant, seed, accuracy, asr, pointing=None):
        found = {"zero_shot_top1": accuracy, "attack_success_rate": asr, "plan_pointing_accuracy": pointing}
        dose = {"rate": 0.01, "poison_count/badnets": 16, "poison_count/targeted": 128, "targets": 16, "targets_hit": 0}
        probes = {"linear_probe/digits": 0.8, "linear_probe/letters": accuracy}
        names = {"dataset": dataset, "attack": "least", "defense": "otcclip-plus", "variant": variant, "seed": seed}
        return names | dose | probes | found

    recorded = [run("scenes", "full", k, 0.9 + k / 100, 0.0, 0.5) for k in range(3)]
    recorded += [run("scenes", "one look", k, 0.8 + k / 100, 0.5, 0.5) for k in (2, 0, 1)]
    recorded += [run("scenes", "no judgement", 1, 0.96, 0.9), run("scenes", "late", 7, 0.9, 0.0)]
    recorded += [run("emoji-scenes", "one look", 0, 0.3, 0.1)]
    text = comparisons.controls_table(recorded)
    first, second = text.split("## emoji-scenes")
    assert first.startswith("## scenes\n\nPlanted: 144 pairs, 1.00 %.\n\n| | seeds | zero-shot accuracy, % | backdoor")
    heads = [line for line in first.splitlines() if line.startswith("| | seeds")]
    assert all("targeted images hit | linear probe, digits" in line and "plan pointing" in line for line in heads)
    assert "| full | 3 | 91.0 (90.0 to 92.0) | 0.0 | 0, ≤ 7.5 % | 80.0 | 91.0 (90.0 to 92.0) | | 50.0 | |" in first
    apart = "-10.0 [-10.0, -10.0]"
    same = "+0.0 [+0.0, +0.0]"
    assert f"| one look | 3 | {apart} | +50.0 [+50.0, +50.0] | {same} | {same} | {apart} | | {same} | |" in first
    assert "| no judgement | 1 | +5.0 | +90.0 | +0.0 | +0.0 | +5.0 | | | |" in first, "one seed has no interval"
    assert first.count("| late |") == 1 and first.count("| full |") == 1, "nobody is compared with itself"
    assert "Minus" not in second and second.count("| one look |") == 1
    (tmp_path / "controls.json").write_text(json.dumps(recorded))
    assert pages.recorded(tmp_path) == ["controls"]
    pages.publish("controls", tmp_path, tmp_path)
    assert text in (tmp_path / "controls.md").read_text() and not (tmp_path / "controls.png").exists()


def test_published_figures_are_marked_and_have_a_source():
    records = [
        {"defense": d, "attack": "targeted", "seed": s, "rate": 0.02, "targets_hit": h, "targets": 16, "variant": v}
        for d, s, h, v in (("clip", 0, 15, "full"), ("clip", 1, 16, "full"), ("otcclip", 0, 0, "global only"))
    ]
    for r in records:
        r["clean_model_hits"] = 0
    text = tables.attack_table(records)
    assert "15+16 of 16 each, 2 seeds<br>*93.75 %, i.e. 15/16* [1]" in text, "counts stay counts"
    assert "[1] SafeCLIP and RoCLIP" in text and "*published, backdoors in general*" in text
    row = next(line for line in text.splitlines() if line.startswith("| targeted"))
    assert row.split("|")[-2].strip() == "0+0", "the clean model's hits, seed by seed"
    badnets = [{"defense": "clip", "attack": "badnets", "seed": 0, "rate": 0.01, "attack_success_rate": 0.9}]
    badnets[0] |= {"clean_model_rate": 0.025, "clean_model_triggered_top1": 0.5, "triggered_top1": 0.03}
    row = tables.attack_table(badnets).splitlines()[2]
    assert row.split("|")[-2].strip() == "2.5"
    assert tables.triggered_table(badnets).splitlines()[2] == "| badnets | 50.0 | 3.0 |"
    assert len(tables.triggered_table(records).splitlines()) == 2, "a targeted attack has no trigger"
    ablated = tables.ablation_table(records)
    assert "| full | 2 |" in ablated and "15.5 (15 to 16)" in ablated
    assert figures.ablation(records).axes[0].get_yticklabels()[1].get_text() == "global only"


def test_claims_hold_in_the_seeds_in_which_they_do_in_every_run():
    def run(defense, attack, seed, accuracy, asr, seconds):
        record = {"defense": defense, "attack": attack, "seed": seed, "zero_shot_top1": accuracy}
        return record | {"attack_success_rate": asr, "seconds_until_safe": seconds, "linear_probe/digits": accuracy}

    records = [run("clip", "none", 0, 0.98, None, None), run("clip", "badnets", 0, 0.98, 0.95, None)]
    records += [run("otcclip", "badnets", 0, 0.97, 0.0, 100), run("roclip", "badnets", 0, 0.9, 0.5, None)]
    records += [run("safeclip", "badnets", 0, 0.9, 0.01, 200), run("cleanclip", "badnets", 0, 0.96, 0.3, None)]

    def verdicts(of):
        rows = [line.split("|") for line in claims(of).splitlines()[2:]]
        return {row[1].strip(): row[5].strip() for row in rows if len(row) > 5}

    found = verdicts(records)
    assert found["undefended, badnets: ASR at least 90 %"] == "in 1 of 1 seed"
    assert found["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "in 1 of 1 seed"
    assert found["OTCCLIP (reconstruction): zero-shot within 2 points of clean CLIP's"] == "in 1 of 1 seed"
    assert found["OTCCLIP (reconstruction): accurate and safe sooner than SafeCLIP"] == "in 1 of 1 seed"
    assert found["OTCCLIP (reconstruction): success 0 % in most cases"] == "in 1 of 1 seed"
    assert found["CleanCLIP at least halves a backdoor"] == "in 1 of 1 seed"
    assert found["... at under 1 point of zero-shot accuracy"] == "**in 0 of 1 seed**", "it costs 2"
    assert found["SafeCLIP: no targeted image hit"] == "not run"
    assert found["RoCLIP, badnets: ASR at most 2 %"] == "**in 0 of 1 seed**"
    more = [run("otcclip", "badnets", 1, 0.99, 0.03, None), run("roclip", "badnets", 1, 0.995, 0.5, 300)]
    worse = verdicts([*records, *more, run("clip", "badnets", 1, 0.9, 0.8, None)])
    assert worse["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "**in 1 of 2 seeds**"
    assert worse["undefended, badnets: ASR at least 90 %"] == "**in 1 of 2 seeds**"
    assert worse["OTCCLIP (reconstruction): zero-shot above RoCLIP's"] == "**in 1 of 2 seeds**", (
        "better on average is not enough"
    )
    assert worse["OTCCLIP (reconstruction): success 0 % in most cases"] == "**in 1 of 2 seeds**"
    never = [run("otcclip", "badnets", 0, 0.9, 0.5, None), run("roclip", "badnets", 0, 0.9, 0.5, None)]
    assert verdicts(never)["OTCCLIP (reconstruction): accurate and safe sooner than RoCLIP"] == "undecided", (
        "neither ever was"
    )
    assert worse["OTCCLIP (reconstruction): accurate and safe sooner than RoCLIP"] == "**in 1 of 2 seeds**"
    blended = [run("otcclip", "blended", 0, 0.8, 0.0, None), run("roclip", "blended", 0, 0.9, 0.5, None)]
    two = verdicts([*records, *blended])
    assert two["OTCCLIP (reconstruction): zero-shot above RoCLIP's"] == "**in 0 of 1 seed (1 of 2 runs)**", (
        "in every run of a seed"
    )


def test_a_claim_about_two_systems_has_their_difference_on_the_same_seeds():
    """Under two attacks OTCCLIP leads by 1 and 3 points on seed 0, by 5 and 7 on seed 1; seed 2 has no partner."""
    same = {"attack": "badnets"}
    records = [same | {"defense": "otcclip", "seed": 2, "zero_shot_top1": 0.1}]
    for seed, lead in ((1, (0.05, 0.07)), (0, (0.01, 0.03))):
        for attack, points in zip(("badnets", "blended"), lead):
            for defense, accuracy in (("otcclip", 0.5 + points), ("roclip", 0.5)):
                records.append({"attack": attack, "defense": defense, "seed": seed, "zero_shot_top1": accuracy})
    row = next(
        line for line in claims(records).splitlines() if "OTCCLIP (reconstruction): zero-shot above RoCLIP's" in line
    )
    mean, low, high = (100 * v for v in metrics.paired([0.06, 0.02], [0.0, 0.0]))  # two seeds, not four runs
    expected = f"| {mean:+.1f} [{low:+.1f}, {high:+.1f}] | in 2 of 2 seeds (4 of 4 runs) |"
    assert mean == pytest.approx(4) and row.endswith(expected), row


@pytest.mark.parametrize("record", pages.recorded())
def test_the_book_shows_the_committed_records(record):
    page, text, _ = pages.PAGES[record]
    records = json.loads((ROOT / "figures" / f"{record}.json").read_text())
    assert text(records) in (ROOT / "book" / "results" / f"{page}.md").read_text()
    if record == "six":
        assert comparisons.headline(records) in (ROOT / "README.md").read_text(), "make pages"


def test_the_book_shows_every_option_of_every_defence():
    text = options.options_table()
    assert text in (ROOT / "book" / "results" / "options.md").read_text(), "make pages"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    told = {(defense, option.strip("`")): ours for defense, option, _, _, ours, *_ in rows}
    known = {(name, f.name): f.default for name, kind in DEFENSES.items() for f in fields(kind)}
    assert {key: str(value).lower() for key, value in known.items()} == told
    for defense, option, published, source, _, reason, seeds in rows:
        assert source and reason and seeds, f"{defense}.{option} has an empty cell"
        assert bool(published) != (source == "none found"), f"{defense}.{option}: a value has a source"


def test_an_option_without_a_row_is_refused(monkeypatch):
    @dataclass
    class More(DEFENSES["otcclip"]):
        sharper: float = 1.0

    monkeypatch.setitem(DEFENSES, "more", More)
    with pytest.raises(ValueError, match="the fields of more differ in sharper"):
        options.options_table()
    row = {"published": "2", "source": "paper", "reason": "none", "seeds": "none"}
    found = yaml.safe_load(options.FILE.read_text())
    monkeypatch.setattr(options.yaml, "safe_load", lambda text: found | {"more": {"sharper": row}})
    assert "| more | `sharper` | 2 | paper | 1.0 |" in options.options_table(), "and the other rows are its parent's"
    assert "| more | `reg` | Sinkhorn" in options.options_table()
    monkeypatch.setattr(options.yaml, "safe_load", lambda text: found | {"more": {"sharper": row | {"why": ""}}})
    with pytest.raises(ValueError, match="more.sharper in options.yaml has .*why"):
        options.options_table()


def test_the_dose_table_by_hand():
    run = {"poison_rate/badnets": 0.005, "poison_rate/targeted": 0.02, "pairs": 12_000, "targets": 15, "dose": 1}
    records = [run | {"attack_success_rate": rate, "targets_hit": hits} for rate, hits in ((0.5, 14), (0.7, 16))]
    line = tables.dose_table(records).splitlines()[2]
    assert line.split(" | ") == ["| 60", "0.50", "60.0 (50.0 to 70.0)", "16", "15.0 (14 to 16)", "| 2 |"], line


def test_paired_differences_by_hand():
    mean, low, high = metrics.paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.5])
    half = 4.302653 * 0.0577350 / 3**0.5  # Student's t with two degrees of freedom, 97.5 %
    assert [mean, low, high] == pytest.approx([0.1333333, 0.1333333 - half, 0.1333333 + half], abs=1e-6)
    assert metrics.paired([0.9], [0.4]) == (pytest.approx(0.5), -np.inf, np.inf), "one seed says nothing of the spread"
    with pytest.raises(ValueError, match="got 1 and 2"):
        metrics.paired([1.0], [1.0, 2.0])


def test_wilson_bounds_by_hand():
    z2 = 1.959964**2  # of the normal distribution, 97.5 %
    assert metrics.wilson(0, 1946) == (pytest.approx(0, abs=1e-12), pytest.approx(z2 / (1946 + z2), rel=1e-6))
    centre, half = (3 + z2 / 2) / (20 + z2), (z2 * (3 * 17 / 20 + z2 / 4)) ** 0.5 / (20 + z2)
    assert metrics.wilson(3, 20) == pytest.approx((centre - half, centre + half), rel=1e-6)
    assert metrics.wilson(3, 20, 0.99)[1] > metrics.wilson(3, 20)[1]
    for wrong in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="got {} of {}".format(*wrong)):
            metrics.wilson(*wrong)


def test_a_bound_is_over_all_images_of_all_seeds():
    runs = [{"attack_success_rate": hits / n, "triggered_images": n} for hits, n in ((0, 90), (2, 110))]
    pooled = 100 * metrics.wilson(2, 200)[1]  # 3.57 %
    assert metrics.at_most("attack_success_rate", runs) == "≤ 3.6 %" and 3.5 < pooled < 3.6, "rounded up"
    assert metrics.at_most("attack_success_rate", [*runs, {"attack_success_rate": 0.0}]) == "", "an older record"
    assert metrics.at_most("attack_success_rate", [*runs, {"attack_success_rate": None, "triggered_images": 0}]) == ""
    assert metrics.at_most("attack_success_rate", [{"attack_success_rate": 1.0, "triggered_images": 9}]) == ""
    assert metrics.at_most("zero_shot_top1", [{"zero_shot_top1": 0.5, "test_images": 9}]) == "", "no attack's success"
    of_kind = {"attack_success_rate/badnets": 0.5, "triggered_images/badnets": 40, "triggered_images": 7}
    assert metrics.at_most("attack_success_rate/badnets", [of_kind]) == "≤ 65 %", "20 of 40: at most 64.8 %"


def test_tables_bound_the_attacks_success():
    same = {"defense": "clip", "attack": "badnets", "rate": 0.01, "variant": "full", "dataset": "scenes"}
    old = [same | {"seed": k, "attack_success_rate": 0.0} for k in range(3)]
    new = [r | {"triggered_images": 1946} for r in old]
    for text in (tables.attack_table, comparisons.worlds_table, tables.ablation_table, records.table):
        assert "0.0, ≤ 0.066 %" in text(new) and "95 % Wilson" in text(new)
        assert "| 0.0" in text(old) and "≤" not in text(old)
    dose = {"poison_rate/badnets": 0.005, "poison_rate/targeted": 0.02, "pairs": 12_000, "targets": 16, "dose": 1}
    assert "| 0, ≤ 20 % |" in tables.dose_table([old[0] | dose | {"targets_hit": 0}])


def test_differences_are_of_the_same_seeds():
    def run(defense, seed, **found):
        return {"dataset": "emoji", "attack": "least", "defense": defense, "seed": seed} | found

    ours = [run("otcclip", k, zero_shot_top1=v, targets_hit=1) for k, v in ((2, 0.3), (0, 0.1), (1, 0.2), (7, 0.9))]
    theirs = [run("clip", k, zero_shot_top1=v) for k, v in ((0, 0.2), (1, 0.3), (2, 0.4))]
    keys = ("zero_shot_top1", "targets_hit")
    row = comparisons.differences_table([*ours, *theirs], "otcclip", "clip", keys).splitlines()[2]
    assert row == "| emoji | least | -10.0 [-10.0, -10.0] | | 3 |", "by seed and not by place; 7 has no partner"
    assert comparisons.differences_table(ours, "otcclip", "clip", keys) == ""
    assert "minus" not in comparisons.worlds_table([r | {"rate": 0.0} for r in ours])
    third = [run("roclip", k, zero_shot_top1=0.3) for k in range(3)]
    page = comparisons.worlds_table([r | {"rate": 0.0} for r in (*theirs, *ours, *third)])
    said = [line.split(", on the same")[0] for line in page.splitlines() if " minus " in line]
    labels = [look(name).label for name in ("clip", "otcclip", "roclip")]
    assert said == [f"{labels[k]} minus {labels[j]}" for j, k in ((0, 1), (0, 2), (1, 2))], "each minus all before it"


def test_several_attacks_of_one_set_have_a_row_each():
    counts = {"poison_count/badnets": 91, "poison_count/targeted": 176, "rate": 0.02, "attack": "six"}
    runs = [
        counts | {"defense": defense, "seed": k, "dataset": "scenes", "attack_success_rate/badnets": rate + k / 100}
        for defense, rate in (("clip", 0.9), ("otcclip-plus", 0.0))
        for k in range(2)
    ]
    runs[3] |= {"targets_hit": 3, "targets": 16}
    for r in runs:
        r |= {"poison_auroc/badnets": 0.75, "poison_recall/badnets": None if r["defense"] == "clip" else 0.5}
    page = comparisons.each_attack(runs)
    assert "| scenes | badnets | 91 | 90.5 (90.0 to 91.0) | 0.5 (0.0 to 1.0) |" in page
    assert "| scenes | targeted | 176 | | 3" in page and "minus CLIP" in page
    assert "| scenes | badnets | OTCCLIP plus (ours) | 0.750 | 0.50 | |" in page
    assert "CLIP, undefended | 0.750" not in page, "it judges nobody"
    short = comparisons.headline(runs, "scenes")
    assert "badnets, % | 90.5 (90.0 to 91.0) | 0.5 (0.0 to 1.0) |" in short and "targeted/" not in short
