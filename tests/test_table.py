"""The table: which runs, in which order, resumed, recorded, and shown beside what was published."""

import json

import pytest

from otclib import plots, results, table
from otclib.table import Job


def test_jobs_come_after_what_they_need():
    todo = table.jobs(table.ATTACKS, table.DEFENSES, [0, 1])
    assert len(set(todo)) == len(todo) == 2 * 6 * 5 + 2 + 1, "the table, a clean run per seed, and the surrogate"
    for k, job in enumerate(todo):
        assert set(job.needs()) <= set(todo[:k])
    assert Job("badnets", "clip", 0) in Job("badnets", "cleanclip", 0).needs()
    assert Job("none", "clip", table.SURROGATE_SEED) in Job("adaptive", "clip", 0).needs()


def test_nothing_starts_late_or_before_what_it_needs(tmp_path):
    todo = table.jobs(["badnets"], ["clip"], [0])
    assert list(table.run_all(todo, tmp_path, workers=1, minutes=0)) == []
    clean = Job("none", "clip", 0).folder(tmp_path)
    clean.mkdir(parents=True)
    (clean / "metrics.json").write_text("{}")
    assert [job for job, _ in table.run_all(todo, tmp_path, workers=1, minutes=0)] == [Job("none", "clip", 0)]


@pytest.fixture(scope="module")
def small_table(cache, tmp_path_factory):
    """Two systems, one attack, on 200 pairs; made twice, the second time from what the first left."""
    out = tmp_path_factory.mktemp("table")
    arguments = ["--out", str(out / "runs"), "--figures", str(out / "figures"), "--workers", "1", "--precision", "fp32"]
    arguments += ["--attacks", "badnets", "--defenses", "clip", "cleanclip", "--seeds", "5"]
    arguments += ["--size", "200", "--epochs", "1"]
    table.main(arguments)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("metrics.json")}
    table.main(arguments)
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("metrics.json")} and len(times) == 3
    return out


def test_results_are_recorded_run_by_run(small_table):
    records = json.loads((small_table / "figures" / "results.json").read_text())
    assert [(r["attack"], r["defense"], r["seed"]) for r in records] == [
        ("none", "clip", 5),
        ("badnets", "clip", 5),
        ("badnets", "cleanclip", 5),
    ]
    for record in records[1:]:
        assert record["rate"] == 1 / 200, "CleanCLIP's is that of the model that it cleans"
        assert 0 <= record["clean_model_rate"] <= 1 and "cores" in record["machine"]
        assert {"zero_shot_top1", "attack_success_rate", "seconds_per_epoch", "linear_probe/letters"} <= set(record)
    config = json.loads((small_table / "runs" / "badnets" / "cleanclip" / "seed5" / "config.json").read_text())
    assert config["model"].endswith("badnets/clip/seed5/model.safetensors")
    text = (small_table / "figures" / "results.md").read_text()
    assert "| badnets |" in text and "1 seed" in text and "99.9 %" in text
    assert (small_table / "figures" / "results.png").stat().st_size > 10_000


def test_bad_names_are_refused_before_anything_is_written(tmp_path):
    for wrong in (["--attacks", "nosuch"], ["--defenses", "nosuch"]):
        with pytest.raises(ValueError, match="nosuch"):
            table.main(["--out", str(tmp_path / "runs"), *wrong])
    assert not list(tmp_path.iterdir())


def line(seconds, accuracy, asr=None, hits=0):
    return {"seconds": seconds, "zero_shot_top1": accuracy, "attack_success_rate": asr, "targets_hit": hits}


def test_seconds_until_safe_by_hand():
    good, bad = line(10, 0.96, 0.01), line(10, 0.96, 0.5)
    assert results.seconds_until_safe([good]) == 10
    assert results.seconds_until_safe([bad, bad, good, good]) == 30
    assert results.seconds_until_safe([bad, good, bad, good]) == 40, "it must stay so"
    assert results.seconds_until_safe([good, bad]) is None
    assert results.seconds_until_safe([line(10, 0.9, 0.0)]) is None
    assert results.seconds_until_safe([line(10, 0.99, None, hits=1)]) is None
    assert results.seconds_until_safe([bad, good], before=100) == 120


def test_published_figures_are_marked_and_have_a_source():
    assert results.published("roclip", "wanet")[0] == "0 %" and "RoCLIP" in results.published("roclip", "wanet")[1]
    assert results.published("otcclip", "adaptive") is None, "no abstract says so"
    assert results.published("clip", "wanet")[0] == "96.3 %", "the particular before the general"
    records = [
        {"defense": d, "attack": "targeted", "seed": s, "rate": 0.02, "targets_hit": h, "targets": 16, "variant": v}
        for d, s, h, v in (("clip", 0, 15, "full"), ("clip", 1, 16, "full"), ("otcclip", 0, 0, "global only"))
    ]
    text = results.attack_table(records)
    assert "15+16 of 16 each, 2 seeds<br>*93.75 %, i.e. 15/16* [1]" in text, "counts stay counts"
    assert "[1] SafeCLIP and RoCLIP" in text
    ablated = results.ablation_table(records)
    assert "| full | 2 |" in ablated and "15.5 (15.0 to 16.0)" in ablated
    assert plots.ablation(records).axes[0].get_yticklabels()[1].get_text() == "global only"


def test_claims_hold_only_if_they_do_in_every_run():
    def run(defense, attack, seed, accuracy, asr, seconds):
        record = {"defense": defense, "attack": attack, "seed": seed, "zero_shot_top1": accuracy}
        return record | {"attack_success_rate": asr, "seconds_until_safe": seconds, "linear_probe/digits": accuracy}

    records = [run("clip", "none", 0, 0.98, None, None), run("clip", "badnets", 0, 0.98, 0.95, None)]
    records += [run("otcclip", "badnets", 0, 0.97, 0.0, 100), run("roclip", "badnets", 0, 0.9, 0.5, None)]
    records += [run("safeclip", "badnets", 0, 0.9, 0.01, 200), run("cleanclip", "badnets", 0, 0.96, 0.3, None)]

    def verdicts(of):
        rows = [line.split("|") for line in results.claims(of).splitlines()[2:]]
        return {row[1].strip(): row[3].strip() for row in rows}

    found = verdicts(records)
    assert found["undefended, badnets: ASR at least 90 %"] == "yes"
    assert found["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "yes"
    assert found["OTCCLIP's zero-shot within 2 points of clean CLIP's"] == "yes"
    assert found["OTCCLIP first at 95 % zero-shot and at most 2 % ASR, in every run"] == "yes"
    assert found["CleanCLIP at least halves every backdoor"] == "yes"
    assert found["... at under 1 point of zero-shot accuracy"] == "**no**", "it costs 2"
    assert found["SafeCLIP: no targeted image hit"] == "not run"
    worse = verdicts(
        [*records, run("otcclip", "badnets", 1, 0.97, 0.03, None), run("clip", "badnets", 1, 0.9, 0.8, None)]
    )
    assert worse["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "**no**"
    assert worse["undefended, badnets: ASR at least 90 %"] == "**no**"
    assert worse["OTCCLIP first at 95 % zero-shot and at most 2 % ASR, in every run"] == "**no**"
