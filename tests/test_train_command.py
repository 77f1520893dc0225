"""``python -m otclib.train`` on real files: from a folder of images and a CSV file to a finished run folder."""

import contextlib
import importlib
import io
import json
import subprocess
import sys

import pytest
from datasets import Dataset

import otclib
from otclib import evaluation
from otclib.data import probes
from otclib.runs import config_of, log_of
from otclib.training import journal, loop

train_command = importlib.import_module("otclib.train")
FINISHED = [
    "config.json",
    "log.jsonl",
    "manifest.parquet",
    "metrics.json",
    "model.safetensors",
    "pairs.parquet",
    "tensorboard",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """150 labelled 64-pixel images and ``train.csv``."""
    root = tmp_path_factory.mktemp("own")
    scenes = otclib.data.load("scenes", split="test", size=150, seed=3)
    lines = ["image,caption,label"]
    for k, row in enumerate(scenes):
        row["image"].save(root / f"{k}.png")
        lines.append(f"{k}.png,{row['caption']},{row['label']}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(autouse=True, scope="module")
def one_short_probe():
    """The linear probes on digits and letters take longer than training here; a few letters stand for both."""
    with pytest.MonkeyPatch.context() as patch:
        few = {"letters": lambda size: probes.letters(size, 104)}
        patch.setattr(probes, "PROBES", few)
        yield


def command(folder, out, *more, defense="clip", attack=("targeted", "badnets")):
    options = ["--dataset", "csv", "--root", folder, "--data-options", '{"label_column": "label"}', "--size", 140]
    options += ["--attack", *attack, "--defense", defense, "--epochs", 1, "--batch-size", 32, "--seed", 1, "--out", out]
    return [str(word) for word in [*options, *more]]


def run(capsys, *arguments, **options) -> dict:
    """The metrics that the command prints, after the lines of its progress."""
    train_command.main(command(*arguments, **options))
    printed = capsys.readouterr().out
    return json.loads(printed[printed.index("{") :])


@pytest.fixture(scope="module")
def said(folder, tmp_path_factory):
    """A finished run, and what the command printed."""
    out, printed = tmp_path_factory.mktemp("runs") / "clip", io.StringIO()
    with contextlib.redirect_stdout(printed):
        train_command.main(command(folder, out))
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def finished(said):
    return said[0]


def test_a_run_is_poisoned_trained_and_evaluated(said):
    finished, printed = said
    metrics = json.loads(printed[printed.index("{") :])
    assert sorted(file.name for file in finished.iterdir()) == FINISHED
    config, manifest = config_of(finished), Dataset.from_parquet(str(finished / "manifest.parquet"))
    assert set(manifest["kind"]) == {"targeted", "badnets"}
    assert config["poisoned"] == len(manifest) == 16 * 16 + 2 and config["pairs"] == 140 - 16 + 16 * 16
    assert metrics["pairs"] == config["pairs"] and metrics["epochs"] == 1 and 0 <= metrics["linear_probe/letters"] <= 1
    assert metrics["poison_rate/targeted"] == pytest.approx(256 / 380)
    assert 0 <= metrics["poison_auroc"] <= 1 and metrics == json.loads((finished / "metrics.json").read_text())


def test_a_finished_run_is_returned_at_once(folder, finished, capsys, monkeypatch):
    monkeypatch.setattr(loop, "Trainer", lambda *_, **__: pytest.fail("it trains again"))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("it evaluates again"))
    before = (finished / "model.safetensors").stat().st_mtime_ns
    assert run(capsys, folder, finished) == json.loads((finished / "metrics.json").read_text())
    assert (finished / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        train_command.main(command(folder, finished, "--lr", "0.1"))
    assert "another configuration: lr was 0.004, is 0.1" in capsys.readouterr().err


def test_an_interrupted_run_is_resumed(folder, tmp_path, capsys, monkeypatch):
    """Killed after its first epoch of two, then before its evaluation; the command goes on from where it was."""
    more, write = ("--epochs", 2), journal.save

    def write_then_die(out, trainer, *rest):
        write(out, trainer, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal, "save", write_then_die)
        train_command.main(command(folder, tmp_path / "run", *more))
    assert (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run" / "metrics.json").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        train_command.main(command(folder, tmp_path / "run", *more))
    assert len(log_of(tmp_path / "run")) == 2 and (tmp_path / "run" / "model.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", lambda *_, **__: pytest.fail("it trains again"))
        metrics = run(capsys, folder, tmp_path / "run", *more)
    assert metrics["epochs"] == 2
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == FINISHED


def test_cleanclip_trains_on_trusted_pairs_alone(folder, finished, tmp_path, capsys):
    run(capsys, folder, tmp_path / "run", "--model", finished / "model.safetensors", defense="cleanclip")
    manifest = Dataset.from_parquet(str(tmp_path / "run" / "manifest.parquet"))
    used = set(Dataset.from_parquet(str(tmp_path / "run" / "pairs.parquet"))["id"])
    attacked = {id.rsplit("+", 1)[0] for id in manifest["id"]}
    assert len(attacked) == 18 and not used & attacked and len(used) == 140 - 18


def test_what_cannot_be_done_is_said_in_one_line(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_command.main(command(folder, tmp_path / "run", "--model", "ViT-B-32:opnai"))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and not (tmp_path / "run").exists() and said.count("\n") == 1
    assert said.startswith("otclib train: 'ViT-B-32:opnai' names 'opnai', neither a file nor a tag of ViT-B-32")


def test_an_unknown_option_is_refused_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        train_command.main(["--out", str(tmp_path / "run"), "--nope"])
    assert end.value.code == 2 and "No such option" in capsys.readouterr().err


def test_as_a_program(folder, tmp_path):
    """In a process of its own, with the linear probes that a run of this data set has."""
    program = [sys.executable, "-m", "otclib.train", *command(folder, tmp_path / "run", attack=["badnets"])]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout[done.stdout.index("{") :])
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"linear_probe/digits", "linear_probe/letters"} <= set(metrics)
