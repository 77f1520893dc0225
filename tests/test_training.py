"""The loop and the run folder: what is written, what is resumed, what is refused."""

import json

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from safetensors.torch import load_file

import otclib
from otclib import defenses, models, optim, training
from otclib.defenses.otcclip import OTCClip
from otclib.runs import config_of, log_of
from otclib.training import journal, side_by_side
from otclib.training.monitoring import Captions, spoken


def test_run_folder(runs, poisoned):
    table, manifest = poisoned
    for name, run in runs.items():
        assert {p.name for p in run.iterdir()} == {
            "config.json",
            "manifest.parquet",
            "log.jsonl",
            "pairs.parquet",
            "model.safetensors",
            "metrics.json",
            "tensorboard",
            *(["epochs"] if name == "otcclip" else []),
        }
        config = json.loads((run / "config.json").read_text())
        assert config["defense"] == name and config["pairs"] == len(table) and config["poisoned"] == len(manifest)
        assert Dataset.from_parquet(str(run / "manifest.parquet"))["id"] == manifest["id"]
        assert [line["epoch"] for line in log_of(run)] == [1, 2]
        assert Dataset.from_parquet(str(run / "pairs.parquet"))["id"] == table["id"]


def test_snapshots_are_the_weights_after_every_epoch(runs):
    folder = runs["otcclip"] / "epochs"
    assert sorted(p.name for p in folder.iterdir()) == ["01.safetensors", "02.safetensors"]
    first, last, final = (load_file(p) for p in (*sorted(folder.iterdir()), runs["otcclip"] / "model.safetensors"))
    assert all(w.dtype == torch.float16 for w in last.values() if w.is_floating_point())
    assert all(torch.equal(w, final[k].to(w.dtype)) for k, w in last.items())
    assert any(not torch.equal(w, last[k]) for k, w in first.items())
    network = otclib.models.load(folder / "01.safetensors")[0]
    assert next(network.parameters()).dtype == torch.float32
    models.load_weights(network, folder / "02.safetensors")
    assert all(torch.equal(w, last[k].to(w.dtype)) for k, w in network.state_dict().items())


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


def test_interrupted_and_resumed_is_the_same_as_never_interrupted(runs, poisoned, little, tmp_path, monkeypatch):
    table, manifest = poisoned

    def go():
        return otclib.train(
            table,
            manifest=manifest,
            defense="otcclip",
            out=tmp_path / "run",
            seed=5,
            epochs=2,
            warmup=1,
            pool=100,
            near_share=0.2,
        )

    checkpoint = journal.save

    def checkpoint_then_die(*arguments):
        checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "save", checkpoint_then_die)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    resumed, straight = (
        otclib.models.load(go() / "model.safetensors")[0],
        otclib.models.load(runs["otcclip"] / "model.safetensors")[0],
    )
    for (name, a), b in zip(resumed.state_dict().items(), straight.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), name


def test_the_loss_falls(runs):
    log = log_of(runs["clip"])
    assert log[-1]["loss/contrastive"] < log[0]["loss/contrastive"]


def test_planted_counts_by_hand(pairs):
    rows = pairs.select([k for k, label in enumerate(pairs["label"]) if label is not None][:4])
    manifest = Dataset.from_dict({"id": [rows["id"][3]], "source_label": [rows["label"][3]]})
    look = Captions(rows, manifest).look(torch.tensor([0, 0, 2, 0]))
    labels = rows["label"]
    assert look["clean_named"] == (2 + (labels[1] == labels[0])) / 3
    assert look["poison_named"] == float(labels[3] == labels[0])
    assert look["distinct_captions"] == 2 / 4
    assert look["clean_kept"] == pytest.approx(2 / 3) and look["poison_kept"] == 0.0
    out = Captions(rows, manifest).look(torch.tensor([0, 0, 2, -1]))
    assert out["poison_left_out"] == 1.0 and out["poison_named"] is None and out["distinct_captions"] == 2 / 3


def test_learning_rate_rises_and_falls():
    rates = [optim.one_cycle(p) for p in (0, 0.025, 0.05, 0.525, 1.0)]
    assert rates == pytest.approx([0.02, 0.51, 1.0, 0.5, 0.0], abs=0.02)
    assert [optim.one_cycle(p, warm=2.0) for p in (0, 1.0)] == pytest.approx([0.0, 0.5], abs=0.01)
    assert optim.one_cycle(1.0, warm=1.0) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"defense": "nosuch"}, "unknown defense 'nosuch'"),
        ({"defense": "clip", "pool": 5}, "no option pool"),
        ({"model": "nosuch"}, "unknown model 'nosuch'"),
        ({"near_share": 0.0}, "near_share must lie in .0, 1."),
        ({"global_weight": 2.0}, "global_weight lie in .0, 1."),
        ({"reg": -1.0}, "reg must be positive"),
        ({"inter_by": "sinkhorn"}, "inter_by is one of balanced, norm, unbalanced, sparc, filip .*got 'sinkhorn'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "at least 2 pairs"),
        ({"lr": -1.0}, "lr must be positive, got -1.0"),
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
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "run"), "--data-options", '{"image_size": 8}'])
    assert "image_size must lie between 16 and 1024 pixels, got 8" in capsys.readouterr().err
    assert callable(otclib.train)  # the command's module now stands where the function was


def test_a_restart_forgets_the_weights_and_keeps_the_pairing(poisoned):
    from accelerate import Accelerator

    torch.manual_seed(0)
    model, _, tokenizer = otclib.models.load("small")
    trainer = training.Trainer(poisoned[0], model, tokenizer, Accelerator(cpu=True), seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer.caption_of[:5] = defenses.LEFT_OUT
    batch = next(trainer.batches([torch.arange(32)]))
    defenses.load("clip").loss(trainer, batch)["contrastive"].backward()
    trainer.set_learning_rate(1e-3)
    for opt in trainer.optimizers:
        opt.step()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    trainer.epoch = 3
    trainer.restart()
    assert trainer.started == 3 and not any(opt.state for opt in trainer.optimizers)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert int((trainer.caption_of == defenses.LEFT_OUT).sum()) == 5


def test_who_is_left_out_comes_with_the_own_caption_and_no_trust(poisoned, small):
    from accelerate import Accelerator

    table, _ = poisoned
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    trainer.caption_of[:5] = defenses.LEFT_OUT
    trainer.caption_of[5] = 7
    seen = 0
    for batch in trainer.batches(trainer.plan(torch.randperm(len(table)), 50)):
        expected = torch.where(batch.row == 5, 7, batch.row)
        assert torch.equal(batch.caption_id, expected) and torch.equal(batch.positive, batch.row >= 5)
        assert torch.equal(batch.text, trainer.text[expected].long())
        seen += len(batch.row)
    assert seen == len(table) // 50 * 50


def test_every_parameter_has_one_optimizer(small):
    groups = [g for opt in optim.optimizers(small[0], 1e-3, 0.1) for g in opt.param_groups]
    held = [p for g in groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(small[0].parameters()))
    assert all(p.ndim >= 2 for p in groups[0]["params"]), "Muon is for matrices"
    assert all(g["weight_decay"] == 0 for g in groups if any(p.ndim < 2 for p in g["params"]))


@pytest.mark.slow
def test_side_by_side_is_the_same_as_alone(runs, poisoned, tmp_path, capsys):
    table, manifest = poisoned
    made = otclib.train_each(table, ["clip"], manifest=manifest, out=tmp_path, seed=5, epochs=2)
    assert "clip epoch 2/2" in capsys.readouterr().out
    a, b = (otclib.models.load(run / "model.safetensors")[0].state_dict() for run in (made["clip"], runs["clip"]))
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-3) for k in a)
    with pytest.raises(ValueError, match="another configuration"):
        otclib.train_each(table, ["clip"], manifest=manifest, out=tmp_path, seed=6, epochs=2)
    weights = (made["clip"] / "model.safetensors").stat().st_mtime_ns
    (made["clip"] / "metrics.json").unlink()  # its evaluation was cut off: it is not trained again
    with pytest.raises(RuntimeError, match="clip: ValueError: .*another configuration"):
        otclib.train_each(table, ["clip"], manifest=manifest, out=tmp_path, seed=6, epochs=2)
    otclib.train_each(table, ["clip"], manifest=manifest, out=tmp_path, seed=5, epochs=2)
    assert (made["clip"] / "metrics.json").exists()
    assert (made["clip"] / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ValueError, match="unknown defense"):
        otclib.train_each(table, ["clip", "nosuch"], out=tmp_path)


def test_a_matching_before_every_second_epoch(poisoned, small):
    from accelerate import Accelerator

    trainer = training.Trainer(poisoned[0], small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClip(epochs=7, warmup=2, every=2, pool=60, near_share=0.2)
    matched = []
    for trainer.epoch in range(7):
        if method.begin_epoch(trainer):
            matched.append(trainer.epoch)
    assert matched == [2, 4, 6]


def test_images_grow_over_the_first_third(poisoned, small):
    from accelerate import Accelerator

    table = poisoned[0].select(range(8))
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0, grow=True)
    few, sides = next(trainer.batches([torch.arange(2)])), []
    for trainer.epoch in range(6):
        trainer.progress(0.5, 6)
        sides.append(trainer.size)
        assert trainer.view(few).shape == (2, 3, trainer.size, trainer.size)
    assert sides == [48, 48, 64, 64, 64, 64]
    assert training.Trainer(table, small[0], small[2], Accelerator(cpu=True)).sides == (64, 64)
    vit = otclib.models.load("ViT-B-32", random=True)[0]
    assert not otclib.models.takes_any_size(vit) and otclib.models.takes_any_size(small[0])


def test_runs_side_by_side_have_one_precision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        side_by_side, "choose", lambda precision, model: asked.append(precision) or ("bf16", "measured")
    )
    run = tmp_path / "clip"
    assert side_by_side._one_precision([run], {}, progress=False) == "bf16" and asked == ["auto"]
    assert side_by_side._one_precision([run], {"precision": "fp32"}, progress=False) == "fp32"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"precision": "fp32"}))
    assert side_by_side._one_precision([run], {}, progress=False) == "fp32" and len(asked) == 1


def test_a_run_says_which_code_made_it(runs, tmp_path, monkeypatch, poisoned, capsys):
    found = config_of(runs["clip"])
    assert found["code"]["version"] == otclib.__version__ and "commit" in found["code"]
    table, manifest = poisoned
    run = tmp_path / "run"
    run.mkdir()
    older = found | {"code": {"version": "0.0.1", "commit": "abc"}}
    (run / "config.json").write_text(json.dumps(older))
    monkeypatch.setattr("otclib.evaluation.evaluate", lambda run, **_: (run / "metrics.json").write_text("{}"))
    otclib.train(table, manifest=manifest, defense="clip", out=run, seed=5, epochs=2)
    now = config_of(run)
    assert now["code"]["commit"] == "abc" and now["resumed_with"] == found["code"]
    assert "begun with" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_with_the_pairs_of_its_batch(pairs, tmp_path, monkeypatch, unevaluated):
    few, real = pairs.select(range(64)), defenses.DEFENSES["clip"].loss

    def spoilt(method, trainer, batch):
        parts = real(method, trainer, batch)
        return {name: part * float("nan") for name, part in parts.items()} if trainer.epoch == 1 else parts

    monkeypatch.setattr(defenses.DEFENSES["clip"], "loss", spoilt)
    how = {"defense": "clip", "out": tmp_path / "run", "epochs": 3, "batch_size": 32, "progress": False}
    with pytest.raises(FloatingPointError, match="not finite in epoch 2, step 1: contrastive nan") as caught:
        otclib.train(few, **how)
    assert "the last good checkpoint is that of epoch 1" in str(caught.value)
    assert sum(id in str(caught.value).split(" are ")[1].split(", ") for id in few["id"]) == 32
    assert len(log_of(tmp_path / "run")) == 1
    monkeypatch.setattr(defenses.DEFENSES["clip"], "loss", real)
    assert len(log_of(otclib.train(few, **how))) == 3, "it goes on from that checkpoint"


def test_a_run_folder_in_use_is_refused(pairs, tmp_path, unevaluated):
    out = tmp_path / "run"
    out.mkdir()
    lock = FileLock(out / ".lock")
    how = {"defense": "clip", "out": out, "epochs": 1, "progress": False}
    with lock, pytest.raises(ValueError, match="run is in use: another process trains there"):
        otclib.train(pairs.select(range(64)), **how)
    otclib.train(pairs.select(range(64)), **how)
    assert not (out / ".lock").exists()


def test_a_collapsed_matching_is_logged_and_said(poisoned):
    table, manifest = poisoned
    few = torch.arange(len(table)) % 9
    line = Captions(table, manifest).look(few)
    assert line["collapsed"] == 1 and "COLLAPSED" in spoken("otcclip", {"epoch": 1, "seconds": 1.0, **line}, 2)
    assert "collapsed" not in Captions(table, manifest).look(torch.arange(len(table)))


def test_a_run_of_before_is_read_under_the_names_of_today(tmp_path):
    """SafeCLIP's ``least`` is now called ``min_safe``."""
    (tmp_path / "config.json").write_text(json.dumps({"defense": "safeclip", "options": {"least": 0.2, "cap": 0.9}}))
    assert config_of(tmp_path)["options"] == {"min_safe": 0.2, "cap": 0.9}


def test_a_resumed_curve_has_every_value_once(tmp_path):
    """The value of the step of the checkpoint is kept; the later ones are written anew."""
    from accelerate import Accelerator

    from otclib.experiments import workbook
    from otclib.training.tracking import Tracker

    for first, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        tracker = Tracker(Accelerator(cpu=True), "tensorboard", tmp_path, first)
        for step in steps:
            tracker.log({"loss/contrastive": step + first}, step)
        tracker.finish()
    assert workbook.curve(tmp_path) == ([10, 20, 30, 40], [10, 20, 50, 60])
