"""Doses and targets fit the set: counts and rates, classes by frequency, and a sentence where there is none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from typer.testing import CliRunner

from otclib import attacks
from otclib.attacks import planting, targets
from otclib.cli import app
from otclib.experiments import comparisons, doses
from otclib.experiments.grid import Grid
from otclib.runs import write_json

FORMS = ("a {} in {}", "{1} {0}", "this is the {1} {0}", "one {0}, {1}", "my {0} is {1}")
COLOURS = ("red", "blue", "green", "white", "black")
ANIMALS = "ant bear cow dog eel fox goat hen ibis jay koala lion mole newt owl pig quail rat seal toad".split()


def drawings(captions: dict[str, list[str]], labelled: bool = True) -> Dataset:
    """A table of {class: its captions}: one small picture for each."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"{label}-{k}",
            "image": Pictures.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)),
            "caption": caption,
            "label": label if labelled else None,
        }
        for label, said in captions.items()
        for k, caption in enumerate(said)
    ]
    kinds = {"id": Value("string"), "image": Image(), "caption": Value("string"), "label": Value("string")}
    return Dataset.from_list(rows, features=Features(kinds))


def of(label: str, n: int = 5) -> list[str]:
    return [FORMS[k].format(label, COLOURS[k]) for k in range(n)]


@pytest.fixture(scope="module")
def scarce() -> Dataset:
    """Five drawings of each of 20 animals and of a catfish; the dog is in two captions of the catfish, too."""
    return drawings({name: of(name) for name in ANIMALS} | {"catfish": [*of("catfish", 3), "dog fish", "a sea dog"]})


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if not attacks.plants_copies(name)])
def test_a_dose_is_a_count_or_a_rate(name, scarce):
    dose = 5 if name == "label-consistent" else 11
    _, manifest = attacks.load(name, count=dose, target="owl").poison(scarce, seed=1)
    assert len(manifest) == dose
    spec = json.loads(manifest["attack"][0])
    assert spec["count"] == dose and "rate" not in spec
    (again,) = attacks.from_manifest(manifest)
    assert again.poison(scarce, seed=1)[1]["id"] == manifest["id"]
    by_rate = attacks.load(name, rate=dose / len(scarce), target="owl").poison(scarce, seed=1)[1]
    assert by_rate["id"] == manifest["id"] and "count" not in json.loads(by_rate["attack"][0])


def test_the_default_dose_is_written_as_before():
    rates = {"badnets": 0.005, "blended": 0.005, "sig": 0.005, "wanet": 0.08, "label-consistent": 0.018}
    for name, rate in (rates | {"adaptive": 0.01}).items():
        spec = json.loads(planting.spec(attacks.load(name), name))
        assert spec["rate"] == rate and not {"count", "target"} & set(spec)


def test_what_a_count_cannot_take_is_said(scarce):
    with pytest.raises(ValueError, match="count 104 asks for 104 pairs, but only 100 can be taken"):
        attacks.load("badnets", count=104, target="owl").poison(scarce)
    with pytest.raises(ValueError, match="rate 0.9 asks for 94 pairs, but only 5 can be taken: only they show and"):
        attacks.load("label-consistent", rate=0.9, target="owl").poison(scarce)


def test_the_target_is_the_usual_one_where_it_is_common(pairs, scarce):
    assert json.loads(attacks.load("badnets").poison(pairs)[1]["attack"][0])["target"] == "umbrella"
    few = drawings({name: of(name) for name in ANIMALS} | {"umbrella": of("umbrella", 2)})
    assert set(attacks.load("badnets", count=2).poison(few)[1]["target_label"]) == {"umbrella"}
    animals = {name: [f"{c}, {k} of 500" for k in range(100) for c in of(name)] for name in ("ant", "bee", "bat")}
    rare = drawings(animals | {"umbrella": of("umbrella")})
    assert targets.usual_target(rare) == "ant", "5 of 1,505 are fewer than 1 in 200; ties are broken by the alphabet"


def test_the_target_is_chosen_by_frequency(scarce):
    attack = attacks.load("badnets", count=3)
    poisoned, manifest = attack.poison(scarce, seed=1)
    assert attack.target is None and set(manifest["target_label"]) == {"dog"}
    assert json.loads(manifest["attack"][0])["target"] == "dog" and len(poisoned) == len(scarce)
    assert targets.naming(scarce)["dog"].count("a sea dog") == 1
    assert "catfish" in targets.naming(scarce) and not any("fish" in c for c in targets.naming(scarce)["ant"])


def test_a_class_is_named_as_names_says(pairs):
    """The index of words finds what looking at every caption finds: synonyms, capitals, names of several words."""
    tables = pairs, drawings({"T-shirt": ["A t-shirt", "a shirt", "T SHIRT"], "red hat": ["hat red", "Red Hat", "x"]})
    for table in tables:
        for label, found in targets.naming(table).items():
            assert found == [c for c in table["caption"][:] if planting.data.names(c, label)]


def test_a_target_can_be_chosen_without_planting(scarce):
    """As for weights of unknown origin: without pairs it is the usual one."""
    attack = attacks.load("wanet")
    with pytest.raises(ValueError, match="wanet has no target yet"):
        assert attack.aim
    assert attack.aimed(scarce).aim == "dog" and attack.target is None
    assert [one.target for one in attacks.read(["wanet", {"name": "sig", "target": "owl"}])] == ["umbrella", "owl"]
    assert attacks.load("wanet", target="owl").aimed(scarce).aim == "owl"


def test_targets_have_enough_captions(scarce):
    _, manifest = attacks.load("targeted", targets=16, copies=16).poison(scarce, seed=3)
    for target in set(manifest["target_label"]):
        said = [c for c, t in zip(manifest["poison_caption"], manifest["target_label"]) if t == target]
        assert len(said) == 16 and len(set(said)) >= 4
    mixed = drawings({name: of(name, 1 if k % 2 else 5) for k, name in enumerate(ANIMALS)})
    _, manifest = attacks.load("targeted", targets=4, copies=8).poison(mixed, seed=3)
    assert set(manifest["target_label"]) <= set(ANIMALS[::2]) and set(manifest["source_label"]) <= set(ANIMALS[::2])
    _, manifest = attacks.load("targeted", targets=10, copies=80).poison(mixed, seed=3)
    assert set(manifest["target_label"]) == set(ANIMALS[::2]), "none has 20 captions: those that have most"


def test_a_set_that_cannot_be_attacked_is_refused_with_the_reason(scarce):
    once = drawings({name: of(name, 1) for name in ANIMALS})
    with pytest.raises(
        ValueError, match="'ant' is named by 1 different caption, at least 2 are needed: a model learns"
    ):
        attacks.load("badnets", count=2).poison(once)
    unnamed = drawings({name: of(name if k < 3 else "thing") for k, name in enumerate(ANIMALS)})
    with pytest.raises(ValueError, match="16 classes that captions name are needed, the set has 3 among its 20 labels"):
        attacks.load("targeted").poison(unnamed)
    with pytest.raises(ValueError, match="the set has no labels among which to choose; .* target="):
        attacks.load("badnets", count=2).poison(drawings({"ant": of("ant"), "bee": of("bee")}, labelled=False))
    unlabelled = drawings({"ant": of("ant"), "umbrella": of("umbrella")}, labelled=False)
    assert set(attacks.load("badnets", count=2).poison(unlabelled)[1]["target_label"]) == {"umbrella"}


class Undefended:
    """Stands for ``train``: a model that has learned an attack at so many planted pairs or copies, and not below."""

    def __init__(self, monkeypatch, tmp_path, pairs, **learned):
        self.learned, self.trained, self.out = learned, [], tmp_path / "runs"
        self.records = tmp_path / "figures" / "doses.json"
        monkeypatch.setattr(doses, "train", self.train)
        monkeypatch.setattr(doses.data, "load", lambda name, **given: pairs)
        monkeypatch.setattr(doses, "RECORDS", self.records)

    def train(self, poisoned, *, manifest, seed, out, defense, model, **how):
        if out.exists():
            return out
        self.trained.append((out.parent.name, seed))
        found = {"zero_shot_top1": 0.9}
        for attack in attacks.from_manifest(manifest):
            n = sum(kind == attack.kind for kind in manifest["kind"])
            dose = n // 16 if attack.kind == "targeted" else n
            learned = min(1.0, (dose / self.learned[attack.kind]) ** 2)
            success = {"targeted": {"targets_hit": round(16 * learned), "targets": 16}}
            found |= success.get(attack.kind, {"attack_success_rate": 0.95 * learned})
            found |= {f"poison_count/{attack.kind}": n, f"poison_rate/{attack.kind}": n / len(poisoned)}
        out.mkdir(parents=True)
        write_json(out / "metrics.json", found)
        return out

    def least(self, attack="badnets", dataset="scenes", **given):
        return doses.least(dataset, attack, out=self.out, **given)


def test_the_least_dose_lies_between_the_last_failure_and_the_first_success(monkeypatch, tmp_path, pairs):
    world = Undefended(monkeypatch, tmp_path, pairs, badnets=22)
    (record,) = world.least()
    assert [(r["dose"], r["enough"]) for r in record["rungs"]] == [(8, False), (16, False), (23, True), (32, True)]
    seeds = {}
    for dose, seed in world.trained:
        seeds.setdefault(dose, []).append(seed)
    assert seeds["badnets-8"] == [10], "far from enough at the first seed"
    assert seeds["badnets-16"] == seeds["badnets-23"] == [10, 11, 12]
    assert (record["dose"], record["count"], record["rate"]) == (23, 23, pytest.approx(23 / 400))
    assert json.loads(world.records.read_text()) == [json.loads(json.dumps(record))]
    world.trained.clear()
    assert world.least()[0]["rungs"] == record["rungs"] and not world.trained, "finished runs are kept"


def test_a_first_dose_that_is_enough_is_halved(monkeypatch, tmp_path, pairs):
    world = Undefended(monkeypatch, tmp_path, pairs, badnets=3, targeted=1)
    badnets, targeted = world.least(["badnets", "targeted"])
    assert [r["dose"] for r in badnets["rungs"]] == [2, 3, 4, 8] and badnets["dose"] == 3
    assert [r["dose"] for r in targeted["rungs"]] == [1, 2] and targeted["dose"] == 1, "no fewer than one"
    assert targeted["count"] == 16 and ("badnets-8+targeted-2", 10) in world.trained, "planted together"


def test_the_mean_over_seeds_decides(monkeypatch, tmp_path, pairs):
    ladder = doses.Ladder({"name": "badnets"}, 8)
    for dose, rates in ((8, (0.99, 0.7, 0.99)), (16, (0.8, 0.9, 1.0))):
        run = {"poison_count/badnets": dose, "poison_rate/badnets": dose / 400}
        ladder.tell(dose, {10 + k: run | {"attack_success_rate": rate} for k, rate in enumerate(rates)})
    assert [rung["enough"] for rung in ladder.rungs] == [False, True]
    several = {"attack_success_rate": 0.9, "attack_success_rate/badnets": 0.2}
    assert ladder.value(several) == 0.2, "of several backdoors its own"
    with pytest.raises(ValueError, match="no labelled test images"):
        ladder.value({"attack_success_rate": None})


def test_what_is_never_learned_is_recorded_too(monkeypatch, tmp_path, pairs):
    world = Undefended(monkeypatch, tmp_path, pairs, badnets=10_000)
    (record,) = world.least()
    assert record["dose"] is None and [r["dose"] for r in record["rungs"]] == [8, 16, 32, 64]
    assert record["ended"] == "128 planted pairs would be more than 25% of 400"
    with pytest.raises(ValueError, match="no dose of badnets is enough on scenes: up to 64 pairs were tried"):
        doses.with_dose({"name": "badnets", "dose": "least"}, "scenes")


def test_a_set_that_cannot_be_attacked_has_no_least_dose(monkeypatch, tmp_path):
    once = drawings({name: of(name, 1) for name in ANIMALS})
    world = Undefended(monkeypatch, tmp_path, once, badnets=4)
    with pytest.raises(ValueError, match="badnets cannot be planted on scenes: target class 'ant' is named by 1"):
        world.least(start=2)
    assert not world.records.exists() and not world.trained
    for words, given in (
        ("tuning seeds; .0. are kept for evaluation", {"seeds": [0, 10]}),
        ("must not have count", {"attack": {"name": "badnets", "count": 3}}),
        ("different names", {"attack": ["badnets", "badnets"]}),
    ):
        with pytest.raises(ValueError, match=words):
            world.least(**given)


def test_a_record_is_found_by_its_set_attack_and_model(monkeypatch, tmp_path, pairs):
    world = Undefended(monkeypatch, tmp_path, pairs, badnets=16, blended=16)
    world.least(options={"image_size": 32}, size=400)
    world.least({"name": "blended", "alpha": 0.3}, options={"image_size": 32}, size=400)
    world.least(options={"image_size": 32}, size=400, start=16)
    assert len(json.loads(world.records.read_text())) == 2, "one for each"
    given = {"image_size": 32, "size": 400, "root": None}
    assert doses.known("scenes", given)["dose"] == 16
    assert doses.known("scenes", given, {"name": "blended", "alpha": 0.3})["dose"] == 16
    for other in ({"dataset": "emoji"}, {"options": {}}, {"attack": "blended"}, {"model": "RN50"}):
        assert doses.known(**{"dataset": "scenes", "options": given} | other) is None
    assert doses.with_dose({"name": "badnets", "dose": "least", "times": 2}, "scenes", given) == {
        "name": "badnets",
        "count": 32,
    }
    spec = {"name": "blended", "alpha": 0.2, "dose": "least"}
    command = (
        "run: otclib dose --dataset scenes --size 400 --data-options '{\"image_size\": 32}' "
        '--attack \'{"name": "blended", "alpha": 0.2}\' --model RN50'
    )
    with pytest.raises(ValueError, match=re.escape(command)):
        doses.with_dose(spec, "scenes", given, "RN50")


def test_a_dose_becomes_a_count_copies_or_a_rate():
    for spec, expected in (
        ({"name": "badnets", "dose": 40}, {"count": 40}),
        ({"name": "badnets", "dose": 0.01, "patch": 0.2}, {"rate": 0.01, "patch": 0.2}),
        ({"name": "targeted", "dose": 40}, {"copies": 40}),
        ({"name": "toxic-text", "dose": 40}, {"copies": 40}),
        ({"name": "targeted", "copies": 4}, {"copies": 4}),
    ):
        assert doses.with_dose(spec, "scenes") == {"name": spec["name"]} | expected
    for spec, words in (
        ({"name": "targeted", "dose": 0.01}, "'least', a whole number .copies. got 0.01"),
        ({"name": "badnets", "dose": "much"}, "a share of the pairs, such as 0.01, got 'much'"),
        ({"name": "badnets", "dose": 4, "rate": 0.1}, "one dose, badnets has dose 4 and rate 0.1"),
        ({"name": "badnets", "dose": 4, "times": 2}, "times is a positive multiple of the dose 'least'"),
        ({"name": "badnets", "times": 2}, "times is a positive multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            doses.with_dose(spec, "scenes")


@pytest.fixture
def worlds(monkeypatch, tmp_path):
    """The committed configuration of three worlds, with its runs in a folder of the test."""
    names = (*planting.data.NAMES, "emoji", "emoji-scenes")
    monkeypatch.setattr(planting.data, "NAMES", tuple(dict.fromkeys(names)))
    monkeypatch.setattr(doses, "RECORDS", tmp_path / "doses.json")
    config = yaml.safe_load((Path(__file__).parent.parent / "workflow" / "worlds.yaml").read_text())
    return Grid(config | {"out": str(tmp_path / "runs")})


def test_a_grid_takes_the_least_dose_of_each_set(worlds, tmp_path):
    with pytest.raises(ValueError, match="no least dose of targeted is recorded for scenes .* run: otclib dose"):
        worlds.asked(tmp_path)
    least = {"scenes": (15, 8), "emoji-scenes": (60, 16), "emoji": (200, 12)}
    records = [
        {"dataset": name, "options": {}, "attack": {"name": attack}, "model": "small", "dose": dose}
        for name, both in least.items()
        for attack, dose in zip(("badnets", "targeted"), both)
    ]
    doses.RECORDS.write_text(json.dumps(records))
    cells = worlds.asked(tmp_path)
    assert len(cells) == 3 * 2 * 3 * 3
    for cell in cells:
        times = {"least": 1, "twice": 2}[cell.attack]
        planned = [(a.copies if a.kind == "targeted" else a.count) for a in worlds.planned(cell)]
        assert planned == [times * dose for dose in reversed(least[cell.dataset])]


def test_records_of_several_sets_name_theirs(worlds, tmp_path):
    """A finished cell is recorded with its set, and is found again; in a grid of one set nothing is added."""
    doses.RECORDS.write_text(
        json.dumps(
            [
                {"dataset": "emoji", "options": {}, "attack": {"name": name}, "model": "small", "dose": 8}
                for name in ("badnets", "targeted")
            ]
        )
    )
    cell = worlds.cell("emoji", "least", "clip", 1)
    config = {"defense": "clip", "options": {"epochs": 8}, "precision": "bf16", "machine": "one", "code": {}}
    config |= {"attacks": [planting.spec(attack, attack.kind) for attack in worlds.planned(cell)]}
    config["attacks"][1] = config["attacks"][1].replace("{", '{"target": "cat", ', 1)
    found = {"defense": "clip", "seed": 1, "poison_auroc": 0.3, "poison_kept": 0.75, "clean_kept": 0.4}
    for name, value in (("config", config), ("metrics", found | {"poison_count/badnets": 8})):
        worlds.folder(cell).mkdir(parents=True, exist_ok=True)
        write_json(worlds.folder(cell) / f"{name}.json", value)
    (worlds.folder(cell) / "log.jsonl").write_text('{"epoch": 1, "seconds": 2}\n')
    (record,) = worlds.collect(tmp_path / "figures")
    assert record["dataset"] == "emoji" and record["clean_kept"] == 0.4 and worlds.cell_of(record) == cell
    assert worlds.recorded(tmp_path / "figures") == {cell: record}, "its target, which the set chose, is no difference"
    line = comparisons.worlds_table([record | {"rate": 0.02}, record | {"rate": 0.02, "seed": 2}]).splitlines()[2]
    assert line.startswith("| emoji | least | 8 pairs, 2.00 % | CLIP, undefended |"), line
    assert "| 75.0 | 40.0 | 0.300 | 2 |" in line
    assert "dataset" not in Grid(worlds.config | {"datasets": {"emoji": {"dataset": "emoji"}}}).record(cell)


def test_the_command_finds_a_dose_and_takes_it(monkeypatch, tmp_path, pairs):
    world = Undefended(monkeypatch, tmp_path, pairs, badnets=16)
    words = ["dose", "--attack", "badnets", "--start", "8", "--out", str(world.out), "--seed", "10", "--seed", "11"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "badnets, 8 pairs (2.00 %" in done.stdout and "success 95.0 %, seeds 10, 11: enough" in done.stdout
    assert f"least dose of badnets on scenes: 16 pairs, recorded in {world.records}" in done.stdout
    poison = ["poison", "--out", str(tmp_path / "out"), "--attack", '{"name": "badnets", "dose": "least", "times": 2}']
    assert "400 pairs, 32 of them planted (8.00 %)" in CliRunner().invoke(app, poison).stdout
    refused = CliRunner().invoke(
        app, [*poison[:2], str(tmp_path / "no"), "--attack", '{"name": "sig", "dose": "least"}']
    )
    assert refused.exit_code == 2 and "run: otclib dose --dataset scenes --attack sig" in refused.stderr
