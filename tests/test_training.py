"""The loop and the run folder: what is written, what is resumed, what is refused."""

import json

import pytest
import torch
from datasets import Dataset

import otclib
from otclib import results, training
from otclib.defenses.otcclip import OTCClip


def test_run_folder(runs, poisoned):
    table, manifest = poisoned
    for name, run in runs.items():
        assert {p.name for p in run.iterdir()} == {
            "config.json", "manifest.parquet", "log.jsonl", "pairs.parquet", "model.safetensors", "metrics.json",
        }
        config = json.loads((run / "config.json").read_text())
        assert config["defense"] == name and config["pairs"] == len(table) and config["poisoned"] == len(manifest)
        assert Dataset.from_parquet(str(run / "manifest.parquet"))["id"] == manifest["id"]
        assert [line["epoch"] for line in results.log(run)] == [1, 2]
        assert Dataset.from_parquet(str(run / "pairs.parquet"))["id"] == table["id"]


def test_a_finished_run_is_returned_and_another_configuration_refused(runs, poisoned):
    table, manifest = poisoned
    run = runs["clip"]
    before = (run / "metrics.json").stat().st_mtime_ns
    assert otclib.train(table, manifest=manifest, defense="clip", out=run, seed=5, epochs=2) == run
    assert (run / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another configuration: .*epochs"):
        otclib.train(table, manifest=manifest, defense="clip", out=run, seed=5, epochs=3)
    with pytest.raises(ValueError, match="seed was 5, is 6"):
        otclib.train(table, manifest=manifest, defense="clip", out=run, seed=6, epochs=2)


def test_interrupted_and_resumed_is_the_same_as_never_interrupted(runs, poisoned, tmp_path, monkeypatch):
    table, manifest = poisoned

    def go():
        return otclib.train(
            table, manifest=manifest, defense="otcclip", out=tmp_path / "run", seed=5, epochs=2, warmup=1, pool=100
        )

    checkpoint = training._checkpoint

    def checkpoint_then_die(*arguments):
        checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_checkpoint", checkpoint_then_die)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    resumed, straight = otclib.models.load(go() / "model.safetensors")[0], otclib.models.load(
        runs["otcclip"] / "model.safetensors"
    )[0]
    for (name, a), b in zip(resumed.state_dict().items(), straight.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), name


def test_the_loss_falls(runs):
    for run in runs.values():
        log = results.log(run)
        assert log[-1]["loss/contrastive"] < log[0]["loss/contrastive"]


def test_planted_counts_by_hand(pairs):
    rows = pairs.select([k for k, label in enumerate(pairs["label"]) if label is not None][:4])
    manifest = Dataset.from_dict({"id": [rows["id"][3]], "source_label": [rows["label"][3]]})
    look = training.Planted(rows, manifest).look(torch.tensor([0, 0, 2, 0]))
    labels = rows["label"]
    assert look["clean_named"] == (2 + (labels[1] == labels[0])) / 3
    assert look["poison_named"] == float(labels[3] == labels[0])
    assert look["distinct_captions"] == 2 / 4
    assert look["clean_kept"] == pytest.approx(2 / 3) and look["poison_kept"] == 0.0


def test_otcclip_reassigns_only_pairs_that_are_far(poisoned, small):
    """Whoever stays is near by its own rank, whoever moves gets a caption of the pool."""
    from accelerate import Accelerator

    table, _ = poisoned
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClip(warmup=0, pool=60, keep=0.1)
    said = method.begin_epoch(trainer)
    moved = trainer.caption_of != torch.arange(len(table))
    assert said["kept"] == pytest.approx(1 - float(moved.float().mean()), abs=0.02)
    assert len(trainer.caption_of[moved].unique()) <= 60
    trainer.epoch, method.warmup = 0, 1
    assert method.begin_epoch(trainer) == {}, "nothing is matched in the warm-up"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defense": "nosuch"}, "unknown defense 'nosuch'"),
        ({"defense": "clip", "pool": 5}, "no option pool"),
        ({"model": "nosuch"}, "unknown model 'nosuch'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "at least 2 pairs"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_bad_input_writes_nothing(pairs, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        otclib.train(pairs, **{"out": tmp_path / "run", **change})
    assert not (tmp_path / "run").exists()


def test_unwritable_out(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        otclib.train(pairs, out=tmp_path / "file")
    with pytest.raises(ValueError, match="not a writable folder"):
        otclib.train(pairs, out=tmp_path / "file" / "run")


def test_command_line(tmp_path, capsys):
    from otclib.train import main

    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "run"), "--attack", "nosuch"])
    assert stop.value.code == 2 and "unknown attack 'nosuch'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
