"""What the chapters share."""

import signal
import subprocess

import numpy as np
import pytest
import torch

import otclib
from otclib import training
from otclib.experiments import workbook
from otclib.runs import log_of


def test_poisoned_is_the_pairs_with_the_attacks_in_it(pairs):
    plain, table, manifest = workbook.poisoned("scenes", ["badnets"], seed=5, size=400)
    assert plain["caption"][:] == pairs["caption"][:]
    expected, planted = otclib.attacks.plant(pairs, [otclib.attacks.load("badnets")], seed=5)
    assert table["caption"][:] == expected["caption"][:] and manifest["id"][:] == planted["id"][:]


def test_distances_by_epoch_are_those_of_the_snapshots(runs, poisoned):
    table, manifest = poisoned
    found = workbook.distances_by_epoch({"otcclip": runs["otcclip"]}, table, manifest, sample=50)["otcclip"]
    assert sorted(found) == [1, 2] and {k: len(v) for k, v in found[1].items()} == {
        "clean": 50,
        "targeted": 12,
        "badnets": sum(kind == "badnets" for kind in manifest["kind"]),
    }
    network, preprocess, tokenizer = otclib.models.load(runs["otcclip"] / "epochs" / "02.safetensors")
    rows = [k for k, id in enumerate(table["id"]) if id in set(manifest["id"])]
    kind = dict(zip(manifest["id"], manifest["kind"]))
    rows = [k for k in rows if kind[table[k]["id"]] == "badnets"]
    with torch.no_grad():
        image = otclib.models.encode_image(network, torch.stack([preprocess(table[k]["image"]) for k in rows])).pooled
        text = otclib.models.encode_text(network, tokenizer([table[k]["caption"] for k in rows])).pooled
    np.testing.assert_allclose(np.sort(found[2]["badnets"]), np.sort(1 - (image * text).sum(1)), atol=1e-4)


def test_curves_grow_in_one_place(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(("update", figure))

    def display(figure, display_id):
        shown.append(("first", figure))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    curves = workbook.Curves()
    line = {"epoch": 1, "zero_shot_top1": 0.5}
    curves({"clip": [line]})
    curves({"clip": [line, {**line, "epoch": 2}]})
    assert [how for how, _ in shown] == ["first", "update"]
    assert len(shown[1][1].axes[0].lines[0].get_xdata()) == 2


def test_training_is_watched_epoch_by_epoch(pairs, unevaluated, tmp_path):
    seen = []
    out = tmp_path / "run"
    few = pairs.select(range(64))
    shares = []
    look = {"progress": False, "live": lambda logs: seen.append(len(logs["run"])), "tick": shares.append}
    otclib.train(few, defense="clip", out=out, epochs=2, batch_size=16, **look)
    assert seen == [1, 2] and len(log_of(out)) == 2
    assert shares == [k / 8 for k in range(1, 9)], "four steps an epoch"


@pytest.mark.slow
def test_runs_side_by_side_are_watched_too(pairs, tmp_path, capsys):
    seen = []
    same = {"seed": 5, "epochs": 1, "live": lambda logs: seen.append(sum(map(len, logs.values())))}
    training.train_each(pairs.select(range(64)), ["clip"], out=tmp_path, **same)
    shown = capsys.readouterr()
    assert seen == [1] and "clip epoch 1/1" in shown.out
    assert "clip   0%" in shown.err and "clip 100%" in shown.err, "a bar over its steps"
    training.train_each(pairs.select(range(64)), ["clip"], out=tmp_path, progress=False, **same)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("folder", ["nothing", "begun"])
def test_a_log_that_is_not_there_yet_is_empty(tmp_path, folder):
    (tmp_path / "begun").mkdir()
    assert log_of(tmp_path / folder) == []


def test_a_command_is_finished_refused_or_killed(tmp_path):
    assert "--checkpoint-every" in workbook.finish(workbook.start(["--help"]))
    with pytest.raises(RuntimeError, match="ended with 2: .*no configuration at"):
        workbook.finish(workbook.start(["--config", tmp_path / "none.yaml"]))
    process = workbook.start(["--out", tmp_path / "run"])
    with pytest.raises(subprocess.TimeoutExpired):
        workbook.finish(process, timeout=0.1)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "run" / "metrics.json").exists()
    workbook.kill(process)  # a second time, too


def test_a_curve_of_a_run(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "tensorboard")
    for step in (10, 20):
        writer.add_scalar("loss/contrastive", step / 8, step)
    writer.close()
    assert workbook.curve(tmp_path) == ([10, 20], [1.25, 2.5])
