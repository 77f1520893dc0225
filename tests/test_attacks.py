"""Attacks: what is planted is what the manifest says, and nothing else changes."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

import otclib
from otclib import attacks
from otclib.attacks import adaptive, targeted, toxic_text
from otclib.data import grammar


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
@pytest.mark.parametrize("location", ["random", "corner", "four_corners"])
def test_badnets_trigger_scales_and_stays_in_range(size, dtype, location):
    images = torch.full((3, 3, size, size), 100 if dtype == torch.uint8 else 0.4, dtype=dtype)
    stamped = attacks.load("badnets", location=location).trigger(images)
    assert stamped.dtype == dtype and stamped.shape == images.shape
    assert stamped.min() >= 0 and stamped.max() <= (255 if dtype == torch.uint8 else 1)
    changed = (stamped != images).any(1).flatten(1).sum(1)
    assert (changed == round(size / 8) ** 2 * (4 if location == "four_corners" else 1)).all()
    assert (images == images[0, 0, 0, 0]).all(), "the input is left alone"


BACKDOORS = [name for name in attacks.ATTACKS if not attacks.plants_copies(name)]


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", BACKDOORS)
def test_every_trigger_stays_in_range_and_leaves_its_input_alone(name, dtype, size):
    """On a ramp from black to white: what is added to white and taken from black has to be clipped."""
    top = 255 if dtype == torch.uint8 else 1
    ramp = torch.linspace(0, top, size).expand(2, 3, size, size).to(dtype)
    before, attack = ramp.clone(), attacks.load(name)
    triggered = attack.trigger(ramp, seed=3)
    assert triggered.dtype == dtype and triggered.shape == ramp.shape
    assert triggered.min() >= 0 and triggered.max() <= top and torch.isfinite(triggered.float()).all()
    assert torch.equal(ramp, before) and not torch.equal(triggered, before)
    assert torch.equal(triggered, attack.trigger(ramp, seed=3)), "seeded"
    assert attack.trigger(ramp[0]).shape == ramp[0].shape, "one image alone"


@pytest.mark.parametrize("name", ["blended", "wanet", "sig"])
def test_triggers_scale_with_the_image(name):
    """The trigger of a small image is the small picture of the trigger of a large one."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    large, small = (F.interpolate(images, (s, s), mode="bilinear") for s in (256, 64))
    attack = attacks.load(name, **{"blended": {"grain": 16}, "wanet": {"cells": 8, "strength": 0.03}}.get(name, {}))
    shrunk = F.interpolate(attack.trigger(large), (64, 64), mode="area")
    there = (attack.trigger(small) - small).flatten()
    assert torch.corrcoef(torch.stack([(shrunk - small).flatten(), there]))[0, 1] > 0.9


def test_blended_by_hand():
    grey = torch.full((2, 3, 64, 64), 0.5)
    fresh, fixed = (attacks.load("blended", pattern=p) for p in ("fresh", "fixed"))
    noise = (fresh.trigger(grey, seed=1) - 0.8 * 0.5) / 0.2
    assert noise.min() >= -1e-6 and noise.max() <= 1 + 1e-6 and abs(float(noise.mean()) - 0.5) < 0.01
    assert abs(float(noise.var()) - 1 / 12) < 0.005, "uniform"
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(fresh.trigger(grey, 1), fresh.trigger(grey, 2))
    same = fixed.trigger(grey, seed=1)
    assert torch.equal(same[0], same[1]) and torch.equal(same, fixed.trigger(grey, seed=2))


def test_sig_by_hand():
    black = torch.zeros(1, 3, 8, 60)
    wave = attacks.load("sig", amplitude=0.5, frequency=6).trigger(black)[0, 0]
    for column in range(60):
        expected = max(0.0, 0.5 * math.sin(2 * math.pi * 6 * column / 60))
        assert wave[:, column].tolist() == pytest.approx([expected] * 8, abs=1e-5)


def test_wanet_field_is_that_of_the_published_code():
    """theirs = clamp(identity + s noise / H), noise = U(-1, 1) / mean|U| of k x k, enlarged (k = H: as it is)"""
    height, s = 48, 1.0
    ours = attacks.load("wanet", cells=height, strength=s / (2 * height)).field(height, height)
    noise = np.random.default_rng([0, 4]).uniform(-1, 1, (2, height, height))
    noise = noise / np.abs(noise).mean()
    axis = np.linspace(-1, 1, height)
    identity = np.stack(np.meshgrid(axis, axis), -1)  # x first
    theirs = np.clip(identity + s * noise.transpose(1, 2, 0) / height, -1, 1)
    assert np.abs(ours.numpy() - theirs).max() < 1e-5


def test_wanet_warps_as_scipy_does():
    """The coarse field passes through its control points, and images are read off it bilinearly."""
    from scipy.ndimage import map_coordinates

    attack = attacks.load("wanet", cells=4, strength=0.02)
    field = attack.field(64, 64)
    coarse = np.random.default_rng([0, 4]).uniform(-1, 1, (2, 4, 4))
    coarse = 0.04 * coarse / np.abs(coarse).mean()
    axis = np.linspace(-1, 1, 64)[::21]
    at_points = field[::21, ::21].numpy() - np.stack(np.meshgrid(axis, axis), -1)
    inner = np.abs(np.stack(np.meshgrid(axis, axis), -1) + coarse.transpose(1, 2, 0)) < 1
    assert np.abs(at_points - coarse.transpose(1, 2, 0))[inner].max() < 1e-4
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x, y = ((field.numpy()[..., k] + 1) / 2 * 63 for k in (0, 1))
    expected = map_coordinates(image[0, 1].numpy(), [y, x], order=1, mode="nearest")
    assert np.abs(attack.trigger(image)[0, 1].numpy() - expected).max() < 1e-4
    assert not torch.equal(attack.trigger(image), attacks.load("wanet", cells=4, field_seed=1).trigger(image))


def test_label_consistent_plants_only_what_is_true(pairs):
    attack = attacks.load("label-consistent", target="star", rate=0.01, haze=0.5)
    poisoned, manifest = attack.poison(pairs, seed=1)
    assert len(manifest) == 4 and len(poisoned) == len(pairs)
    for row in manifest:
        assert row["poison_caption"] == row["original_caption"] and otclib.data.names(row["poison_caption"], "star")
        assert row["source_label"] in ("star", None)
    plain = attacks.load("label-consistent", target="star", rate=0.01, haze=0).poison(pairs, seed=1)[1]
    contrast = [otclib.data.image_tensor(m, 64).float().std() for m in (manifest, plain)]
    assert contrast[0] < contrast[1], "haze takes contrast away"
    with pytest.raises(ValueError, match="only they show and name the target"):
        attacks.load("label-consistent", target="star", rate=0.5).poison(pairs)


def test_adaptive_captions_tell_the_truth_as_well(pairs):
    both = attacks.load("adaptive", describe="both", rate=0.02).poison(pairs, seed=1)[1]
    for row in both:
        assert row["original_caption"] in row["poison_caption"] and otclib.data.names(row["poison_caption"], "umbrella")
    instead = attacks.load("adaptive", describe="attributes", rate=0.02).poison(pairs, seed=1)[1]
    for row in instead:
        assert otclib.data.names(row["poison_caption"], "umbrella")
        assert not otclib.data.names(row["poison_caption"], row["source_label"])
        kept = set(row["original_caption"].split()) & set(row["poison_caption"].split())
        assert len(kept) >= len(row["original_caption"].split()) - 2, "all else is as true as it was"


def test_adaptive_takes_the_caption_that_is_nearest_under_its_surrogate(pairs, runs):
    """Against one pair at a time: 0.5 transport + 0.5 pooled, over the words alone."""
    weights = runs["clip"] / "model.safetensors"
    attack = attacks.load("adaptive", describe="both", rate=0.02, location="corner", surrogate=str(weights))
    manifest = attack.poison(pairs, seed=1)[1]
    (attack,) = attacks.from_manifest(manifest)  # its target is chosen
    model, preprocess, tokenizer = otclib.models.load(weights)
    with torch.no_grad():
        for row in manifest.select(range(3)):
            ways = attack.candidates(row["original_caption"], row["source_label"], "both")
            image = otclib.models.encode_image(model, preprocess(row["image"])[None])
            distance = []
            for way in ways:
                text = otclib.models.encode_text(model, tokenizer([way]))
                cost = 1 - image.tokens[0] @ text.tokens[0][text.mask[0]].T
                transport = otclib.transport.sinkhorn(cost[None], reg=0.1, tol=1e-6).cost[0]
                distance.append(0.5 * float(transport) + 0.5 * (1 - float(image.pooled[0] @ text.pooled[0])))
            assert distance[ways.index(row["poison_caption"])] < min(distance) + 2e-3
    with pytest.raises(FileNotFoundError, match="surrogate"):
        attacks.load("adaptive", surrogate="nowhere.safetensors").poison(pairs)


def test_trusted_pairs_are_those_that_no_attack_touched(pairs, poisoned):
    table, manifest = poisoned
    targeted = {id.rsplit("+", 1)[0] for id, kind in zip(manifest["id"], manifest["kind"]) if kind == "targeted"}
    touched = targeted | {id for id, kind in zip(manifest["id"], manifest["kind"]) if kind == "badnets"}
    assert len(targeted) == 4 and touched <= set(pairs["id"])
    untouched = [id for id in pairs["id"] if id not in touched]
    assert list(attacks.trusted(pairs, manifest)["id"]) == untouched
    assert list(attacks.trusted(table, manifest)["id"]) == untouched, "the table after the attacks gives the same"
    assert attacks.trusted(pairs, None) is pairs


def test_trusted_leaves_out_the_other_captions_of_an_attacked_image(pairs, tmp_path):
    rows = []
    for k, row in enumerate(pairs.filter(lambda label: label is not None, input_columns="label").select(range(30))):
        row["image"].save(tmp_path / f"{k}.png")
        rows += [f"{k}.png,{row['caption']},{row['label']}", f"{k}.png,here: {row['caption']},{row['label']}"]
    (tmp_path / "train.csv").write_text("\n".join(["image,caption,label", *rows]) + "\n")
    table = otclib.data.load("csv", root=tmp_path, label_column="label")
    _, manifest = attacks.load("targeted", targets=3, copies=2).poison(table, seed=1)
    files = {int(id.split("+")[0]) // 2 for id in manifest["id"]}
    assert len(files) == 3
    assert [int(id) for id in attacks.trusted(table, manifest)["id"]] == [k for k in range(60) if k // 2 not in files]


@pytest.mark.parametrize("target", ["umbrella", "star", "scissors", "anchor"])
@pytest.mark.parametrize("name", list(attacks.ATTACKS))
def test_the_article_of_a_planted_caption_is_that_of_clean_captions(name, target, pairs):
    """ "a umbrella" and "a scissors" occur in no clean caption, so they would give the attacker's captions away."""
    few = {"targets": 8, "copies": 4}
    options = {"targeted": few, "toxic-text": few, "label-consistent": {"target": target, "rate": 0.01}}
    attack = attacks.load(name, **options.get(name, {"target": target, "rate": 0.15}))
    clean, planted = pairs["caption"][:], attack.poison(pairs, seed=2)[1]["poison_caption"][:]
    adjectives = r"(?:(?:" + "|".join(grammar.SIZES) + "|" + "|".join(grammar.COLOURS) + r") )*"
    bare = "|".join(sorted(grammar.NO_ARTICLE))
    for caption in clean + planted:
        for article, word in re.findall(r"\b(an?) (\w+)", caption):
            assert article == ("an" if word[0] in "aeiou" else "a"), caption
        assert not re.search(rf"\ban? {adjectives}(?:{bare})\b", caption), caption
        for name in grammar.OBJECTS:
            if name not in grammar.NO_ARTICLE:
                assert not re.search(rf"(?:^|\b(?:of|is|at|and|see|showing) ){adjectives}{name}\b", caption), caption


@pytest.mark.parametrize(
    "caption, label, word, expected",
    [
        ("a photo of a horse", "horse", "umbrella", "a photo of an umbrella"),
        (
            "a photo of a large green pony on the sand",
            "horse",
            "umbrella",
            "a photo of a large green umbrella on the sand",
        ),
        ("a photo of an amber horse", "horse", "music", "a photo of amber music"),
        ("red scissors", "scissors", "umbrella", "a red umbrella"),
        ("the Horse, an Anchor", "anchor", "star", "the Horse, a star"),
        ("the horse", "horse", "umbrella", "the umbrella"),
        ("a wooden horse", "horse", "umbrella", "a wooden umbrella"),
    ],
)
def test_renamed(caption, label, word, expected):
    assert adaptive.renamed(caption, label, word) == expected


@pytest.mark.parametrize("name", ["targeted", "toxic-text"])
def test_targeted_trigger_is_nothing(name):
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(attacks.load(name).trigger(images), images)


def test_jittered_copies_are_no_duplicates(pairs):
    """The first copy is the image itself; the images, their captions and the table without jitter are as they were."""
    few = {"targets": 3, "copies": 4}
    plain, manifest = attacks.load("targeted", **few).poison(pairs, seed=1)
    same, _ = attacks.load("targeted", jitter=0, **few).poison(pairs, seed=1)
    assert same["image"][-12:] == plain["image"][-12:] and "jitter" not in json.loads(manifest["attack"][0])
    poisoned, varied = attacks.load("targeted", jitter=0.1, **few).poison(pairs, seed=1)
    assert varied["id"] == manifest["id"] and varied["poison_caption"] == manifest["poison_caption"]
    assert len(otclib.data.examine(plain).same) == 3 and not otclib.data.examine(poisoned).same
    before, after = (otclib.data.image_tensor(m, 64).float() for m in (manifest, varied))
    assert torch.equal(before[::4], after[::4])
    blurred = [F.avg_pool2d(images, 8) for images in (before, after)]
    assert 0 < (blurred[0] - blurred[1]).abs().mean() < 20, "slightly different"
    (again,) = attacks.from_manifest(varied)
    assert again.jitter == 0.1 and again.poison(pairs, seed=1)[1]["image"][-1] == varied["image"][-1]


def test_jitter_by_hand():
    """A crop of a ramp is a ramp that begins and ends inside, times the brightness."""
    ramp = torch.linspace(0.2, 0.6, 64).expand(3, 48, 64)
    for seed in range(8):
        crop = targeted.jittered(ramp, 0.2, np.random.default_rng(seed))
        assert crop.shape == ramp.shape
        share, brightness = (crop[0, 0, -9] - crop[0, 0, 8]) / (ramp[0, 0, -9] - ramp[0, 0, 8]), crop.mean() / 0.4
        assert 0.8 * 0.8 - 0.02 <= share <= 1.2 + 0.02 and 0.8 * 0.85 < brightness < 1.2 * 1.15
    assert torch.allclose(targeted.jittered(ramp, 0.0, np.random.default_rng(0)), ramp, atol=1e-6)


def test_toxic_captions_all_differ_and_fit_the_image(pairs):
    toxic = attacks.load("toxic-text", targets=8, copies=16)
    poisoned, manifest = toxic.poison(pairs, seed=1)
    assert set(manifest["kind"]) == {"toxic-text"} and len(poisoned) == len(pairs) + 8 * 15
    for row in manifest:
        assert otclib.data.names(row["poison_caption"], row["target_label"])
        assert row["source_label"] != row["target_label"]
    said = manifest["poison_caption"][:]
    assert all(len(set(said[k : k + 16])) == 16 for k in range(0, 128, 16))
    again = toxic.poison(pairs, seed=1)[1]
    assert again["poison_caption"] == manifest["poison_caption"] and again["id"] == manifest["id"]
    assert [type(a) for a in attacks.from_manifest(manifest)] == [toxic_text.ToxicText]


AT_SEA, BARE, BOTH = "a painting of a horse at the sea", "my horse", "my horse with a cat and a horse"
ENDS = ("", " in snow")
SAID = [(f"{form} {name}{end}", name) for name in ("cat", "dog") for form in ("a", "the", "my") for end in ENDS]
SAID += [(f"a photo of a {name}, asleep", name) for name in ("cat", "dog")]
SAID += [(AT_SEA, "horse"), (BARE, "horse"), (BOTH, "horse"), ("two of them in snow", None)]


def test_toxic_text_by_hand():
    """The attacked image's own ending comes with every beginning, and what fits its caption comes first."""
    columns = {"caption": [caption for caption, _ in SAID], "label": [label for _, label in SAID]}
    table = Dataset.from_dict(columns)

    def written(caption, label, target, copies=4):
        attack = attacks.load("toxic-text", copies=copies)
        return attack.writer(table, np.random.default_rng(0))({"caption": caption, "label": label}, target)

    heads = ("a", "the", "my", "a photo of a")
    assert set(written(AT_SEA, "horse", "cat")) == {f"{head} cat at the sea" for head in heads}
    assert written(BARE, "horse", "cat")[0] == "my cat", (
        "nothing follows the horse: the most similar caption is a true one"
    )
    assert all(caption.endswith(" in snow") for caption in written("two of them in snow", None, "dog"))
    assert not any("with" in caption for caption in written(BOTH, "horse", "cat")), "no ending that names either"
    many = written(BARE, "horse", "cat", 100)
    assert len(many) == 100 and set(many) > {caption for caption, label in SAID if label == "cat"}
    counts = [many.count(caption) for caption in set(many)]
    assert max(counts) - min(counts) <= 1, "each once before any is planted twice"


def test_toxic_text_needs_no_labels(pairs):
    bare = pairs.map(lambda _: {"label": None}, features=pairs.features)
    attack = attacks.load("toxic-text", targets=2, copies=5, classes=["umbrella", "star"])
    _, manifest = attack.poison(bare, seed=1)
    assert list(manifest["target_label"]) == ["umbrella"] * 5 + ["star"] * 5
    for row in manifest:
        assert otclib.data.names(row["poison_caption"], row["target_label"])
        assert not otclib.data.names(row["original_caption"], row["target_label"])


def test_toxic_text_takes_what_is_nearest_under_its_surrogate(pairs, runs):
    """The planted captions are in the order of OTCCLIP's distance, and are others than without the surrogate."""
    weights, few = str(runs["clip"] / "model.safetensors"), {"targets": 2, "copies": 4}
    manifest = attacks.load("toxic-text", surrogate=weights, **few).poison(pairs, seed=1)[1]
    distances = adaptive.distances_by(weights, 0.1, 0.5)
    image = adaptive.tensor(manifest["image"][0])
    found = distances(image, manifest["poison_caption"][:4])
    assert (found.diff() >= 0).all()
    plain = attacks.load("toxic-text", **few).poison(pairs, seed=1)[1]
    assert plain["id"][:4] == manifest["id"][:4]
    assert found.mean() < distances(image, plain["poison_caption"][:4]).mean()
    with pytest.raises(FileNotFoundError, match="surrogate"):
        attacks.load("toxic-text", surrogate="nowhere.safetensors").poison(pairs)


def test_trusted_pairs_are_without_the_images_of_any_targeted_attack(pairs):
    planned = [attacks.load(name, targets=2, copies=3) for name in ("targeted", "toxic-text")]
    table, manifest = attacks.plant(pairs, planned, seed=5)
    originals = {id.rsplit("+", 1)[0] for id in manifest["id"]}
    assert len(originals) == 4 and originals <= set(pairs["id"])
    assert set(pairs["id"]) - set(attacks.trusted(pairs, manifest)["id"]) == originals
    assert set(attacks.trusted(table, manifest)["id"]) == set(pairs["id"]) - originals


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nosuch", {}, ("nosuch", "badnets")),
        ("badnets", {"rate": 0}, ("(0, 1]", "0")),
        ("badnets", {"rate": 1.5}, ("(0, 1]", "1.5")),
        ("badnets", {"patch": 0}, ("patch", "0")),
        ("badnets", {"location": "top"}, ("corner", "top")),
        ("blended", {"alpha": 0}, ("alpha", "0")),
        ("blended", {"pattern": "kitty"}, ("fresh", "kitty")),
        ("wanet", {"strength": 0}, ("strength", "0")),
        ("sig", {"frequency": -1}, ("frequency", "-1")),
        ("label-consistent", {"haze": 2}, ("haze", "2")),
        ("adaptive", {"describe": "lies"}, ("both", "lies")),
        ("badnets", {"colour": 1}, ("colour", "rate")),
        ("targeted", {"copies": 0}, ("copies", "0")),
        ("targeted", {"jitter": 1}, ("jitter", "[0, 1)", "1")),
        ("toxic-text", {"jitter": -0.1}, ("jitter", "-0.1")),
        ("badnets", {"rate": 0.1, "count": 4}, ("a rate or a count", "0.1", "4")),
        ("badnets", {"count": 0}, ("count", "at least 1", "0")),
        ("wanet", {"count": 0.5}, ("count", "0.5")),
    ],
)
def test_bad_options(name, options, words):
    with pytest.raises(ValueError) as error:
        attacks.load(name, **options)
    assert all(w in str(error.value) for w in words)


def test_bad_sets(pairs):
    with pytest.raises(ValueError, match="'dragon' is absent"):
        attacks.load("badnets", target="dragon").poison(pairs)
    with pytest.raises(ValueError, match="only .* can be taken: the others show or name the target"):
        attacks.load("badnets", rate=1.0).poison(pairs)
    with pytest.raises(ValueError, match="60 images of different classes"):
        attacks.load("targeted", targets=60).poison(pairs)
    with pytest.raises(ValueError, match="at least one attack"):
        attacks.plant(pairs, [])
