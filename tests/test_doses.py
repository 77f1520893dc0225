"""Doses and targets fit the set: counts and rates, classes by frequency, and a sentence where there is none."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from otclib import attacks
from otclib.attacks import planting, targets

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


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name != "targeted"])
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


def test_targets_have_enough_captions(scarce):
    _, manifest = attacks.load("targeted", targets=16, copies=16).poison(scarce, seed=3)
    for target in set(manifest["target_label"]):
        said = [c for c, t in zip(manifest["poison_caption"], manifest["target_label"]) if t == target]
        assert len(said) == 16 and len(set(said)) >= 4
    mixed = drawings({name: of(name, 1 if k % 2 else 5) for k, name in enumerate(ANIMALS)})
    _, manifest = attacks.load("targeted", targets=4, copies=8).poison(mixed, seed=3)
    assert set(manifest["target_label"]) <= set(ANIMALS[::2]) and set(manifest["source_label"]) <= set(ANIMALS[::2])


def test_a_set_that_cannot_be_attacked_is_refused_with_the_reason(scarce):
    once = drawings({name: of(name, 1) for name in ANIMALS})
    with pytest.raises(
        ValueError, match="'ant' is named by 1 different caption, at least 2 are needed: a model learns"
    ):
        attacks.load("badnets", count=2).poison(once)
    with pytest.raises(ValueError, match="16 targets of 8 copies need .* that 2 or more different .* the set has 0"):
        attacks.load("targeted", copies=8).poison(once)
    with pytest.raises(ValueError, match="'owl' is named by 1 different caption, at least 3"):
        attacks.load("targeted", targets=1, classes=["owl"], copies=12).poison(once)
    with pytest.raises(ValueError, match="the set has no labels among which to choose; .* target="):
        attacks.load("badnets", count=2).poison(drawings({"ant": of("ant"), "bee": of("bee")}, labelled=False))
    unlabelled = drawings({"ant": of("ant"), "umbrella": of("umbrella")}, labelled=False)
    assert set(attacks.load("badnets", count=2).poison(unlabelled)[1]["target_label"]) == {"umbrella"}
