"""The table: which runs, in which order, resumed, recorded, and shown beside what was published."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import otclib
from otclib import figures
from otclib.experiments import table
from otclib.experiments import tables as compare
from otclib.experiments.table import Job
from otclib.runs import metrics_of, seconds_until_safe

ROOT = Path(__file__).parent.parent


def test_jobs_come_after_what_they_need():
    todo = table.jobs(table.ATTACKS, table.DEFENSES, [0, 1])
    assert len(set(todo)) == len(todo) == 2 * 6 * 5 + 2 + 1, "the table, a clean run per seed, and the surrogate"
    for k, job in enumerate(todo):
        assert set(job.needs()) <= set(todo[:k])
    assert Job("badnets", "clip", 0) in Job("badnets", "cleanclip", 0).needs()
    assert Job("none", "clip", table.SURROGATE_SEED) in Job("adaptive", "clip", 0).needs()


def test_nothing_starts_late(tmp_path):
    todo = table.jobs(["badnets"], ["clip"], [0])
    assert list(table.run_all(todo, tmp_path, workers=1, minutes=0)) == []


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


@pytest.mark.slow
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
        assert len(record["by_epoch"]["attack_success_rate"]) == record["epochs"] == 1
        assert {"zero_shot_top1", "attack_success_rate", "seconds_per_epoch", "linear_probe/letters"} <= set(record)
    config = json.loads((small_table / "runs" / "badnets" / "cleanclip" / "seed5" / "config.json").read_text())
    assert config["model"].endswith("badnets/clip/seed5/model.safetensors")
    text = (small_table / "figures" / "results.md").read_text()
    assert "| badnets |" in text and "1 seed" in text and "99.9 %" in text
    assert (small_table / "figures" / "results.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_of_another_configuration_is_no_result(small_table):
    job, small = Job("badnets", "clip", 5), {"epochs": 1, "size": 200}
    assert job.finished(small_table / "runs", "fp32", **small)
    assert not Job("badnets", "clip", 6).finished(small_table / "runs", "fp32", **small)
    with pytest.raises(ValueError, match="precision was 'fp32', is 'bf16'"):
        job.finished(small_table / "runs", "bf16", **small)
    with pytest.raises(ValueError, match="of 200 pairs, not 12000 and more"):
        job.finished(small_table / "runs", "fp32", epochs=1)
    config = job.folder(small_table / "runs") / "config.json"
    before = config.read_text()
    config.write_text(before.replace('\\"patch\\": 0.125', '\\"patch\\": 0.5'))
    with pytest.raises(ValueError, match="holds another run: attacks"):
        job.finished(small_table / "runs", "fp32", **small)
    config.write_text(before)


@pytest.mark.slow
def test_records_outlive_their_runs(small_table, tmp_path):
    known = {"precision": "fp32", "epochs": 1, "size": 200}
    file, runs = tmp_path / "results.json", tmp_path / "runs"
    file.write_text((small_table / "figures" / "results.json").read_text())
    arguments = ["--out", str(runs), "--figures", str(tmp_path), "--attacks", "badnets", "--seeds", "5", "--limit", "0"]
    arguments += ["--precision", "fp32", "--epochs", "1"]
    before = table.recorded(file, runs, **known)
    table.main([*arguments, "--size", "200", "--defenses", "roclip"])
    assert table.recorded(file, runs, **known) == before and not runs.exists()
    with pytest.raises(ValueError, match="record of another run.*200 pairs, not 12000 and more; name another --fig"):
        table.main(arguments)
    assert table.recorded(file, runs, **known) == before


def test_only_what_has_no_record_is_trained_and_what_it_needs():
    clean, clip, repaired = (
        Job(*names, 0) for names in (("none", "clip"), ("badnets", "clip"), ("badnets", "cleanclip"))
    )
    surrogate = Job("none", "clip", table.SURROGATE_SEED)
    todo = [surrogate, clean, clip, repaired]
    assert table.unfinished(todo, set(), set()) == [clean, clip, repaired], "nobody needs the surrogate"
    assert table.unfinished(todo, {clean, clip}, set()) == [repaired]
    assert table.unfinished(todo, set(), {*todo}) == []
    assert table.unfinished(todo, set(), {clean, clip}) == [clean, clip, repaired], "a record is no model to repair"
    assert table.unfinished(todo, {clean}, {clean, clip}) == [clip, repaired]
    assert table.unfinished([surrogate, clean, Job("adaptive", "clip", 0)], {clean}, set())[0] == surrogate


@pytest.mark.slow
def test_where_accuracy_is_lost_adds_up(small_table):
    jobs = [Job("badnets", "clip", 5), Job("none", "clip", 5)]
    classes = table.by_class(jobs, small_table / "runs", 200)
    read = [metrics_of(job.folder(small_table / "runs")) for job in jobs]
    assert len(classes) == 42 and sum(of["images"] for of in classes.values()) == 2 * 2000
    misread = sum(of["misread"] for of in classes.values())
    assert misread == pytest.approx(sum(2000 * (1 - metrics["zero_shot_top1"]) for metrics in read), abs=0.1)
    assert all(sum(of["as"].values()) == of["misread"] and label not in of["as"] for label, of in classes.items())
    labelled = sum(label is not None for label in otclib.data.load("scenes", seed=5, size=200)["label"])
    assert sum(of["pairs"] for of in classes.values()) == 2 * labelled - 1, "one of them is planted"
    assert sum(of["parted"] for of in classes.values()) == 0, "the undefended model keeps every caption"
    assert figures.lookalikes(classes).axes[0].texts[0].get_text().startswith(next(iter(classes)))


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capfd):
    (tmp_path / "runs" / "none" / "clip").mkdir(parents=True)
    (tmp_path / "runs" / "none" / "clip" / "seed6").write_text("a file where the run's folder should be")
    with pytest.raises(SystemExit, match="no run is finished"):
        table.main(
            ["--out", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures"), "--workers", "1", "--seeds", "6"]
            + ["--attacks", "badnets", "--defenses", "clip", "--size", "200", "--epochs", "1"]
        )
    assert "failed: ValueError: out must be a folder" in capfd.readouterr().out


KILLED = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from otclib import training
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, training.begin_worker, (os.getpid(), 1)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 100).result()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the worker in /proc")
def test_a_killed_table_leaves_no_worker_behind(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    """Is the process there, and not merely waiting to be buried?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_only_what_is_asked_for_goes_into_the_readme(small_table):
    readme = small_table / "README.md"
    readme.write_text("a\n<!-- table: written by make table -->\nold\n<!-- table ends -->\nz\n")
    table.publish(small_table / "figures", "table")
    assert readme.read_text().startswith("a\n<!-- table: written") and "| badnets |" in readme.read_text()


def test_bad_names_are_refused_before_anything_is_written(tmp_path):
    for wrong in (["--attacks", "nosuch"], ["--defenses", "nosuch"]):
        with pytest.raises(ValueError, match="nosuch"):
            table.main(["--out", str(tmp_path / "runs"), *wrong])
    assert not list(tmp_path.iterdir())


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


def test_published_figures_are_marked_and_have_a_source():
    records = [
        {"defense": d, "attack": "targeted", "seed": s, "rate": 0.02, "targets_hit": h, "targets": 16, "variant": v}
        for d, s, h, v in (("clip", 0, 15, "full"), ("clip", 1, 16, "full"), ("otcclip", 0, 0, "global only"))
    ]
    for r in records:
        r["clean_model_hits"] = 0
    text = compare.attack_table(records)
    assert "15+16 of 16 each, 2 seeds<br>*93.75 %, i.e. 15/16* [1]" in text, "counts stay counts"
    assert "[1] SafeCLIP and RoCLIP" in text and "*published, backdoors in general*" in text
    row = next(line for line in text.splitlines() if line.startswith("| targeted"))
    assert row.split("|")[-2].strip() == "0+0", "the clean model's hits, seed by seed"
    badnets = [{"defense": "clip", "attack": "badnets", "seed": 0, "rate": 0.01, "attack_success_rate": 0.9}]
    badnets[0] |= {"clean_model_rate": 0.025, "clean_model_triggered_top1": 0.5, "triggered_top1": 0.03}
    row = compare.attack_table(badnets).splitlines()[2]
    assert row.split("|")[-2].strip() == "2.5"
    assert compare.triggered_table(badnets).splitlines()[2] == "| badnets | 50.0 | 3.0 |"
    assert len(compare.triggered_table(records).splitlines()) == 2, "a targeted attack has no trigger"
    ablated = compare.ablation_table(records)
    assert "| full | 2 |" in ablated and "15.5 (15.0 to 16.0)" in ablated
    assert figures.ablation(records).axes[0].get_yticklabels()[1].get_text() == "global only"


def test_claims_hold_only_if_they_do_in_every_run():
    def run(defense, attack, seed, accuracy, asr, seconds):
        record = {"defense": defense, "attack": attack, "seed": seed, "zero_shot_top1": accuracy}
        return record | {"attack_success_rate": asr, "seconds_until_safe": seconds, "linear_probe/digits": accuracy}

    records = [run("clip", "none", 0, 0.98, None, None), run("clip", "badnets", 0, 0.98, 0.95, None)]
    records += [run("otcclip", "badnets", 0, 0.97, 0.0, 100), run("roclip", "badnets", 0, 0.9, 0.5, None)]
    records += [run("safeclip", "badnets", 0, 0.9, 0.01, 200), run("cleanclip", "badnets", 0, 0.96, 0.3, None)]

    def verdicts(of):
        rows = [line.split("|") for line in compare.claims(of).splitlines()[2:]]
        return {row[1].strip(): row[4].strip() for row in rows}

    found = verdicts(records)
    assert found["undefended, badnets: ASR at least 90 %"] == "yes"
    assert found["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "yes"
    assert found["OTCCLIP's zero-shot within 2 points of clean CLIP's"] == "yes"
    assert found["OTCCLIP accurate and safe sooner than SafeCLIP"] == "yes"
    assert found["OTCCLIP (reconstruction): success 0 % in most cases"] == "yes"
    assert found["CleanCLIP at least halves a backdoor"] == "yes"
    assert found["... at under 1 point of zero-shot accuracy"] == "**no** (0 of 1)", "it costs 2"
    assert found["SafeCLIP: no targeted image hit"] == "not run"
    assert found["RoCLIP, badnets: ASR at most 2 %"] == "**no** (0 of 1)"
    more = [run("otcclip", "badnets", 1, 0.99, 0.03, None), run("roclip", "badnets", 1, 0.995, 0.5, 300)]
    worse = verdicts([*records, *more, run("clip", "badnets", 1, 0.9, 0.8, None)])
    assert worse["OTCCLIP (reconstruction), badnets: ASR at most 2 %"] == "**no** (1 of 2)"
    assert worse["undefended, badnets: ASR at least 90 %"] == "**no** (1 of 2)"
    assert worse["OTCCLIP's zero-shot above RoCLIP's"] == "**no** (1 of 2)", "better on average is not enough"
    assert worse["OTCCLIP (reconstruction): success 0 % in most cases"].startswith("**no**")
    never = [run("otcclip", "badnets", 0, 0.9, 0.5, None), run("roclip", "badnets", 0, 0.9, 0.5, None)]
    assert verdicts(never)["OTCCLIP accurate and safe sooner than RoCLIP"] == "undecided", "neither ever was"
    assert worse["OTCCLIP accurate and safe sooner than RoCLIP"] == "**no** (1 of 2)"


def test_the_readme_shows_the_committed_records():
    records = json.loads((ROOT / "figures" / "results.json").read_text())
    assert compare.report(records) in (ROOT / "README.md").read_text()


def test_a_dose_is_a_multiple_of_both_attacks(tmp_path):
    planned = {dose: table.Job("targeted+badnets", "clip", 0, dose=dose).planned(tmp_path) for dose in (1 / 16, 1, 2)}
    assert [[a.copies, b.rate] for a, b in planned.values()] == [[1, 0.005 / 16], [16, 0.005], [32, 0.01]]
    folders = {table.Job("targeted+badnets", "clip", 0, dose=dose).folder(tmp_path) for dose in table.DOSES}
    assert len(folders) == len(table.DOSES) and not table.Job("targeted+badnets", "clip", 0, dose=2).needs()


def test_the_dose_table_by_hand():
    run = {"poison_rate/badnets": 0.005, "poison_rate/targeted": 0.02, "pairs": 12_000, "targets": 15, "dose": 1}
    records = [run | {"attack_success_rate": rate, "targets_hit": hits} for rate, hits in ((0.5, 14), (0.7, 16))]
    line = compare.dose_table(records).splitlines()[2]
    assert line.split(" | ") == ["| 60", "0.50", "60.0 (50.0 to 70.0)", "16", "15.0 (14.0 to 16.0)", "", "2 |"], line
