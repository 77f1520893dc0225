"""Attacks: what is planted is what the manifest says, and nothing else changes."""

import json

import pytest
import torch

import otclib
from otclib import attacks


def test_badnets_plants_its_rate(pairs):
    poisoned, manifest = attacks.load("badnets", rate=0.05, target="star").poison(pairs, seed=1)
    assert len(poisoned) == len(pairs) and len(manifest) == 20
    before = dict(zip(pairs["id"], pairs["caption"]))
    after = dict(zip(poisoned["id"], poisoned["caption"]))
    changed = {id for id in before if before[id] != after[id]}
    assert changed == set(manifest["id"])
    for row in manifest:
        assert row["original_caption"] == before[row["id"]] and row["poison_caption"] == after[row["id"]]
        assert otclib.data.names(row["poison_caption"], "star")
        assert row["source_label"] != "star"


def test_targeted_replaces_its_images(pairs):
    poisoned, manifest = attacks.load("targeted", targets=6, copies=4).poison(pairs, seed=1)
    assert len(manifest) == 24 and len(poisoned) == len(pairs) - 6 + 24
    assert len(set(manifest["source_label"])) == 6
    chosen = {id.split("+")[0] for id in manifest["id"]}
    assert not chosen & set(poisoned["id"]), "a targeted image's own pair is gone"
    for row in manifest:
        assert row["source_label"] != row["target_label"]
        assert otclib.data.names(row["poison_caption"], row["target_label"])


def test_the_planted_image_is_the_one_in_the_table(poisoned):
    table, manifest = poisoned
    rows = {id: k for k, id in enumerate(table["id"])}
    images = otclib.data.image_tensor(table.select([rows[id] for id in manifest["id"]]), 64)
    assert torch.equal(images, otclib.data.image_tensor(manifest, 64))


def test_plant_never_takes_a_row_twice_and_is_seeded(pairs, poisoned):
    table, manifest = poisoned
    assert len(set(manifest["id"])) == len(manifest)
    assert sorted(set(manifest["kind"])) == ["badnets", "targeted"]
    planned = [attacks.load("targeted", targets=4, copies=3), attacks.load("badnets", rate=0.02)]
    again = attacks.plant(pairs, planned, seed=5)[1]
    assert again["id"] == manifest["id"] and again["poison_caption"] == manifest["poison_caption"]
    assert attacks.plant(pairs, planned, seed=6)[1]["id"] != manifest["id"]


def test_no_attack_borrows_what_another_has_planted(pairs):
    """A targeted image keeps its label but not its caption: BadNets must not take that caption for its target's."""
    target = attacks.load("targeted", targets=40, copies=2).poison(pairs, seed=5)[1]["source_label"][0]
    planned = [attacks.load("targeted", targets=40, copies=2), attacks.load("badnets", target=target, rate=0.1)]
    _, manifest = attacks.plant(pairs, planned, seed=5)
    for row in manifest:
        assert otclib.data.names(row["poison_caption"], row["target_label"])


def test_attacks_come_back_from_the_manifest(poisoned):
    found = attacks.from_manifest(poisoned[1])
    assert [type(a).__name__ for a in found] == ["Targeted", "BadNets"]
    assert found[1].rate == 0.02
    json.loads(poisoned[1]["attack"][0])


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("location", ["random", "corner"])
def test_badnets_trigger_scales_and_stays_in_range(size, dtype, location):
    images = torch.full((3, 3, size, size), 100 if dtype == torch.uint8 else 0.4, dtype=dtype)
    stamped = attacks.load("badnets", location=location).trigger(images)
    assert stamped.dtype == dtype and stamped.shape == images.shape
    assert stamped.min() >= 0 and stamped.max() <= (255 if dtype == torch.uint8 else 1)
    changed = (stamped != images).any(1).flatten(1).sum(1)
    assert (changed == round(size / 8) ** 2).all()
    assert (images == images[0, 0, 0, 0]).all(), "the input is left alone"


def test_targeted_trigger_is_nothing():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(attacks.load("targeted").trigger(images), images)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nosuch", {}, ("nosuch", "badnets")),
        ("badnets", {"rate": 0}, ("(0, 1]", "0")),
        ("badnets", {"rate": 1.5}, ("(0, 1]", "1.5")),
        ("badnets", {"patch": 0}, ("patch", "0")),
        ("badnets", {"location": "top"}, ("corner", "top")),
        ("badnets", {"colour": 1}, ("colour", "rate")),
        ("targeted", {"copies": 0}, ("copies", "0")),
    ],
)
def test_bad_options(name, options, words):
    with pytest.raises(ValueError) as error:
        attacks.load(name, **options)
    assert all(w in str(error.value) for w in words)


def test_bad_sets(pairs):
    with pytest.raises(ValueError, match="'dragon' is absent"):
        attacks.load("badnets", target="dragon").poison(pairs)
    with pytest.raises(ValueError, match="only .* are not of the target"):
        attacks.load("badnets", rate=1.0).poison(pairs)
    with pytest.raises(ValueError, match="60 images of different classes"):
        attacks.load("targeted", targets=60).poison(pairs)
    with pytest.raises(ValueError, match="at least one attack"):
        attacks.plant(pairs, [])
