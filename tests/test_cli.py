"""The command ``otclib``: every sub-command on real files, and what it refuses."""

import json
import subprocess
import sys
import time

import pytest
from datasets import Dataset, load_from_disk
from typer.testing import CliRunner

from otclib import doctor
from otclib.cli import app
from otclib.runs import metrics_of


def run(*words) -> tuple[int, str, str]:
    """Exit code, and what was printed on both streams."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_poison_writes_a_table_that_others_read(tmp_path):
    out = tmp_path / "poisoned"
    words = ["poison", "--out", out, "--size", 300, "--attack", "badnets", "--seed", 3]
    assert run(*words)[:2] == (0, f"300 pairs, 2 of them planted (0.67 %): {out}\n")
    pairs, manifest = load_from_disk(str(out / "pairs")), Dataset.from_parquet(str(out / "manifest.parquet"))
    assert len(pairs) == 300 and set(manifest["id"]) < set(pairs["id"]) and set(manifest["kind"]) == {"badnets"}
    code, _, said = run(*words)
    assert code == 2 and said == f"otclib poison: out must be a new folder, {out} exists already\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poisoned"], "nothing half-written beside it"


def test_a_finished_run_is_measured_and_shown(runs, little, tmp_path):
    code, printed, _ = run("evaluate", runs["clip"])
    assert code == 0 and json.loads(printed) == metrics_of(runs["clip"])
    code, printed, _ = run("table", runs["clip"], runs["otcclip"])
    assert code == 0 and printed.startswith("| | clip | otcclip |")
    code, printed, _ = run("explore", runs["otcclip"], "--out", tmp_path / "plans.html")
    page = (tmp_path / "plans.html").read_text()
    assert code == 0 and printed.strip() == str(tmp_path / "plans.html") and "planted" in page


@pytest.mark.parametrize(
    "words, said",
    [
        (["evaluate", "nowhere"], "otclib evaluate: nowhere is not a finished run"),
        (["table", "nowhere"], "nowhere has no metrics.json"),
        (["train", "--out", "x", "--options", "{q: 1"], "--options takes JSON"),
        (["train", "--out", "x", "--options", "[1]"], "--options takes a JSON object"),
        (["train", "--out", "x", "--options", '{"epochs": 1}'], "--options must not repeat --epochs"),
        (["train", "--out", "x", "--size", 20, "--attack", "badnet"], "unknown attack 'badnet'"),
        (["poison", "--out", "x", "--size", 20, "--attack", "none"], "poison needs at least one --attack"),
    ],
)
def test_what_is_refused_is_said_in_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, error = run(*words)
    assert code == 2 and said in error and printed == "" and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_doctor_answers_in_a_moment_and_without_torch():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "otclib.cli", "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 0 and time.monotonic() - start < 30
    assert " torch\n" not in done.stderr, "importing torch takes seconds"
    for word in ("processor", "memory", "disk", "GPU", "packages", "a demo", "missing"):
        assert f"\n{word}" in f"\n{done.stdout}"


def test_the_doctor_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "_memory", lambda: 2.0)
    said = doctor.report()
    assert "missing     papermill: for the demo and the chapters; pip install 'otclib[notebooks]'" in said
    assert "missing     make: for the commands of the README" in said and "and the demo needs 4" in said
