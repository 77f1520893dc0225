"""One run as a YAML file: what `otclib train --config` takes from it, and the same file as a grid of one cell."""

import importlib
import json

import pytest
import yaml
from test_cli import run
from typer.main import get_command

import otclib
from otclib import evaluation, training
from otclib.cli import app
from otclib.experiments import config
from otclib.experiments.grid import Cell, Grid
from otclib.runs import config_of

FEW = {
    "dataset": "scenes",
    "size": 60,
    "data_options": {"image_size": 32},
    "attack": ["badnets", {"name": "blended", "rate": 0.05}],
    "defense": "otcclip",
    "options": {"pool": 20, "inter": 0.0},
    "epochs": 2,
    "batch_size": 30,
    "lr": "5e-4",  # so YAML reads 5e-4
    "betas": [0.9, 0.99],
    "optimizer": "adamw",
    "warmup_steps": 1,
    "precision": "fp32",
    "seed": 3,
}
HOW = ("defense", "model", "seed", "epochs", "batch_size", "lr", "optimizer", "betas", "warmup_steps", "precision")


def written(folder, content, name="run.yaml"):
    (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder / name


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What reaches ``train`` from a command line, which trains nothing."""
    found = {}

    def note(pairs, **given):
        found.clear()
        found.update(given, pairs=pairs)
        (tmp_path / "metrics.json").write_text("{}")
        return tmp_path

    monkeypatch.setattr(training, "train", note)
    return found


def test_a_file_gives_what_the_command_line_leaves_open(asked, tmp_path):
    file = written(tmp_path, FEW | {"model": None, "snapshots": True, "processes": 4})
    assert run("train", "--config", file, "--out", "x", "--epochs", 1)[0] == 0
    assert {name: asked[name] for name in HOW} == {name: FEW.get(name, "small") for name in HOW} | {
        "epochs": 1,
        "lr": 5e-4,
        "betas": (0.9, 0.99),
    }
    assert (asked["pool"], asked["inter"], asked["snapshots"], str(asked["out"])) == (20, 0.0, True, "x")
    assert len(asked["pairs"]) == 60 and asked["pairs"][0]["image"].size == (32, 32)
    specs = [json.loads(spec) for spec in dict.fromkeys(asked["manifest"]["attack"])]
    assert [(spec["name"], spec["rate"]) for spec in specs] == [("badnets", 0.005), ("blended", 0.05)]


def test_options_are_merged_and_the_command_line_wins(asked, tmp_path):
    file = written(tmp_path, FEW)
    more = ["--options", '{"pool": 10, "q": 0.0}', "--data-options", '{"image_size": 48}']
    assert run("train", "--out", "x", *more, "--attack", "none", "--config", file)[0] == 0
    assert (asked["pool"], asked["inter"], asked["q"]) == (10, 0.0, 0.0)
    assert asked["manifest"] is None and asked["pairs"][0]["image"].size == (48, 48)
    command = importlib.import_module("otclib.train")
    words = ["--config", str(file), "--out", "x", "--attack", "targeted", '{"name": "sig", "rate": 0.1}', "--lr", "0.1"]
    command.main(words)
    assert set(asked["manifest"]["kind"]) == {"targeted", "sig"} and asked["lr"] == 0.1
    for nothing in ([], "none", ["none"]):
        assert run("train", "--out", "x", "--config", written(tmp_path, FEW | {"attack": nothing}))[0] == 0
        assert asked["manifest"] is None


@pytest.mark.parametrize(
    "content, said",
    [
        (FEW | {"epoch": 1}, "run.yaml has the unknown key epoch; known are attack, batch_size, betas"),
        ("a: [1", "run.yaml is not YAML: while parsing"),
        ("- 1\n- 2", "run.yaml must hold a mapping of options, such as 'epochs: 8', got [1, 2]"),
        ("", "run.yaml must hold a mapping of options, such as 'epochs: 8', got None"),
        ("1: 2", "run.yaml must hold a mapping of options"),
        (FEW | {"options": [1]}, "options in run.yaml must be a mapping, such as {name: 1}, got [1]"),
        (FEW | {"attack": [{"rate": 1}]}, "attack in run.yaml lists names, or mappings such as"),
        (FEW | {"attack": [3]}, "got 3"),
        (FEW | {"attack": ["badnet"]}, "unknown attack 'badnet'"),
        (FEW | {"options": {"epochs": 1}}, "--options must not repeat --epochs"),
    ],
)
def test_what_is_refused_is_said_in_one_line(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, content)
    code, printed, error = run("train", "--config", "run.yaml", "--out", "x")
    assert code == 2 and said in error and printed == "" and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_no_file_and_a_wrong_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "--config", "none.yaml") == (2, "", "otclib train: no configuration at none.yaml\n")
    code, _, error = run("train", "--config", written(tmp_path, FEW | {"epochs": "many"}), "--out", "x")
    assert code == 2 and "--epochs" in error
    code, _, error = run("train", "--out", "x", "--attack", '{"rate": 1}')
    assert code == 2 and "an attack needs a name" in error
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_the_workflow_knows_every_key_of_the_command():
    options = {each.name for each in get_command(app).commands["train"].params} - {"config"}
    known = {*config.SOURCE, *config.NEEDED, *config.how(), "options", "repair_size"}
    assert options == known


@pytest.mark.slow
def test_a_cell_is_what_the_command_trains(unevaluated, tmp_path, monkeypatch):
    """The same configuration, but for paths: of a run, and of the repair of that run."""
    monkeypatch.setattr(evaluation, "default_watch", lambda config: None)
    clip = FEW | {"defense": "clip", "options": {}, "epochs": 1, "out": str(tmp_path / "command" / "clip")}
    repair = {
        "defense": "cleanclip",
        "repair_size": 40,
        "repairs": str(written(tmp_path, clip, "clip.yaml")),
        "model": str(tmp_path / "command" / "clip" / "model.safetensors"),
        "out": str(tmp_path / "command" / "cleanclip"),
    }
    for name, content in (("clip", clip), ("cleanclip", clip | repair)):
        assert run("train", "--config", written(tmp_path, content))[0] == 0
        grid = Grid.of(content | {"out": str(tmp_path / "grid" / name)})
        cell = Cell("scenes", "badnets+blended", name, 3)
        assert grid.cells[-1] == cell
        assert grid.needs(cell) == [Cell("scenes", "badnets+blended", "clip", 3)] * (name == "cleanclip")
        made, wanted = config_of(grid.run(cell)), config_of(tmp_path / "command" / name)
        assert made.pop("model").endswith("model.safetensors" if name == "cleanclip" else "small")
        wanted.pop("model")
        assert made == wanted and made["pairs"] == (40 if name == "cleanclip" else 60)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"epoch": 1}, "the configuration has the unknown key epoch"),
        ({"out": None}, "it lacks out"),
        ({"defense": "cleanclip", "options": {}}, "`repairs` must name the configuration of it"),
        ({"defense": "cleanclip", "options": {}, "repairs": "otcclip.yaml"}, "what is repaired is a run of clip"),
        ({"processes": 0}, "processes is a whole number from 1 on, .* got 0"),
    ],
)
def test_a_run_that_is_no_cell_is_refused(change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, FEW | {"defense": "clip", "options": {}, "out": "x"}, "clip.yaml")
    written(tmp_path, FEW | {"out": "x"}, "otcclip.yaml")
    with pytest.raises(ValueError, match=words):
        Grid.of(FEW | {"out": "x"} | change)


def test_targets_without_labels_are_images_of_other_captions(pairs):
    bare = pairs.map(lambda _: {"label": None}, features=pairs.features)
    attack = otclib.attacks.load("targeted", targets=2, copies=3, classes=["umbrella", "star", "key"])
    poisoned, manifest = attack.poison(bare, seed=1)
    assert list(manifest["target_label"]) == ["umbrella"] * 3 + ["star"] * 3 and len(poisoned) == len(pairs) - 2 + 6
    for row in manifest:
        assert otclib.data.names(row["poison_caption"], row["target_label"])
        assert not otclib.data.names(row["original_caption"], row["target_label"])
    (again,) = otclib.attacks.from_manifest(manifest)
    assert again.poison(bare, seed=1)[1]["id"] == manifest["id"]
    with pytest.raises(ValueError, match="4 targets need as many different classes, got umbrella, star"):
        otclib.attacks.load("targeted", targets=4, classes=["umbrella", "star"])
    with pytest.raises(ValueError, match="`classes` needs no labels"):
        otclib.attacks.load("targeted").poison(bare)


def test_repairs_may_take_a_few_of_the_trusted_pairs(pairs, poisoned):
    _, manifest = poisoned
    all_of_them = otclib.attacks.trusted(pairs, manifest)
    few = otclib.attacks.trusted(pairs, manifest, 50, seed=1)
    assert len(few) == 50 and set(few["id"]) < set(all_of_them["id"])
    assert few["id"] != otclib.attacks.trusted(pairs, manifest, 50, seed=2)["id"]
    with pytest.raises(ValueError, match="pairs can be trusted, asked for 1000"):
        otclib.attacks.trusted(pairs, manifest, 1000)
