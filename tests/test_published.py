"""Every file in ``configs/published``: its head, its keys, and two steps of its training on a tiny copy of its data."""

import json
import re
from pathlib import Path

import copies
import pytest
from test_cli import run
from typer.main import get_command

from otclib import attacks, defenses, models
from otclib.cli import app
from otclib.experiments import config
from otclib.runs import config_of, log_of

FOLDER = Path(__file__).parent.parent / "configs" / "published"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
SETS = {"cc3m-1m": copies.cc3m, "coco": copies.coco, "visual-genome": copies.visual_genome}
NAMES = [f"{system}-{name}" for system in ("otcclip", "safeclip", "roclip", "cleanclip", "clip") for name in SETS]
QUICK = ("otcclip-coco", "safeclip-visual-genome", "roclip-cc3m-1m", "cleanclip-coco")  # every system and every format
WORDS = ["umbrella", "desk", "palace", "clock", "dog", "red car"] * 8
HEAD = ("command", "figure", "source", "cost")


def test_there_is_a_file_for_every_system_and_data_set():
    assert sorted(FILES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_command_figure_source_and_cost(name):
    lines = FILES[name].read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head, "the head is above all"
    assert [match[1] for line in head if (match := re.match(r"# ([a-z]+): ", line))] == list(HEAD)
    assert f"# command: otclib train --config configs/published/{name}.yaml" in head
    assert any(
        re.match(r"# cost: about [\d.]+ hours on one A100, [\d.]+ on one H100; estimated", line) for line in head
    )
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_the_keys_are_options_and_every_value_has_a_source(name):
    found, text = config.read(FILES[name]), FILES[name].read_text()
    options = {each.name for each in get_command(app).commands["train"].params}
    assert set(found) <= options | set(config.OF_THE_WORKFLOW)
    defenses.load(found["defense"], **found.get("options", {}))
    assert [attacks.load(**each).kind for each in found["attack"]] == ["targeted", "badnets"]
    assert found["out"] == f"runs/published/{name}" and name.startswith(found["defense"])
    where = ("root", "defense", "options", "model", "out", "classes", "- name")  # need no source
    values = [line.strip() for line in text.splitlines() if re.match(r" *(- )?[a-z_]+:", line)]
    assert not [line for line in values if " # " not in line and not line.startswith(where)]
    if found["defense"] == "cleanclip":
        first = config.read(FOLDER.parent.parent / found["repairs"])
        assert found["model"] == f"{first['out']}/model.safetensors"


def test_systems_on_one_data_set_are_attacked_alike():
    for name in SETS:
        same = [
            config.read(FILES[f"{system}-{name}"]) for system in ("otcclip", "safeclip", "roclip", "cleanclip", "clip")
        ]
        for key in (*config.SOURCE, "attack", "seed"):
            assert all(each.get(key) == same[0].get(key) for each in same), f"{key} on {name}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """{data set: a tiny copy of it}."""
    return {name: make(tmp_path_factory.mktemp(name), WORDS) for name, make in SETS.items()}


def words_of(name: str, tiny: dict, out: Path, model: str) -> list:
    """The command of a file on a tiny copy: fewer pairs, epochs and poison, a smaller model; all else as it says."""
    found = config.read(FILES[name])
    few = {"targeted": {"targets": 2, "copies": 2}, "badnets": {"rate": 0.05}}
    epochs = 2 if found["defense"] == "otcclip" else 1  # so that it matches, and leaves none out
    more = ["--options", json.dumps({"near_share": 1.0})] if epochs == 2 else []
    words = ["--config", FILES[name], "--root", tiny[name.removeprefix(found["defense"] + "-")], "--out", out]
    words += ["--model", model, "--epochs", epochs, "--batch-size", 20, "--size", 40, *more]
    words += ["--repair-size", 30] if "repair_size" in found else []
    return [*words, *(word for each in found["attack"] for word in ("--attack", json.dumps(each | few[each["name"]])))]


def trains(name: str, tiny: dict, out: Path, model: str) -> None:
    code, _, said = run("train", *words_of(name, tiny, out, model))
    assert code == 0, said
    found, made = config.read(FILES[name]), config_of(out)
    assert {key: made[key] for key in ("lr", "optimizer", "betas", "weight_decay", "warmup_steps", "precision")} == {
        key: found[key] for key in ("lr", "optimizer", "betas", "weight_decay", "warmup_steps", "precision")
    }
    changed = {"near_share", "warmup", "epochs"}  # OTCCLIP's warm-up is shorter in a short run
    kept = {key: value for key, value in found.get("options", {}).items() if key not in changed}
    assert kept.items() <= made["options"].items()
    assert made["poisoned"] == 6 and len(made["attacks"]) == 2
    assert made["pairs"] == (30 if found["defense"] == "cleanclip" else 42)
    assert len(log_of(out)) == made["options"]["epochs"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_it_trains(name, tiny, small, unevaluated, tmp_path):
    model = "small"
    if name.startswith("cleanclip"):
        models.save(small[0], tmp_path / "model.safetensors", "small")
        model = tmp_path / "model.safetensors"
    trains(name, tiny, tmp_path / "run", model)


@pytest.mark.slow
def test_it_trains_the_model_of_the_papers(tiny, unevaluated, tmp_path):
    trains("clip-coco", tiny, tmp_path / "run", "RN50")
