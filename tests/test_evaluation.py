"""Evaluation: the definitions, on cases small enough to count by hand."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import otclib
from otclib import evaluation
from otclib.attacks import planting
from otclib.data import grammar, probes
from otclib.evaluation import attack_success, zero_shot
from otclib.experiments import records
from otclib.runs import metrics_of


def test_success_rate_leaves_the_target_class_out_twice():
    true = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 0, 0, 0, 1])
    # target 0: rows 0 and 1 show it and count nowhere; of the other four, rows 2, 3, 4 are called 0
    assert evaluation.success_rate(predicted, true, 0) == 3 / 4
    # target 1: row 2 is out; of the other five, rows 1 and 5
    assert evaluation.success_rate(predicted, true, 1) == pytest.approx(2 / 5)
    assert evaluation.success_rate(predicted[:2], true[:2], 0) is None


def test_coverage_by_hand():
    cover = evaluation.coverage([0.25, 0.0, 0.75, 0.5], 4).reshape(4, 4)
    assert np.array_equal(cover, [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert evaluation.coverage([0.0, 0.0, 0.125, 1.0], 4).reshape(4, 4)[0].tolist() == [0.5, 0, 0, 0]


def test_coverage_of_any_box_is_its_area():
    rng = np.random.default_rng(0)
    for _ in range(20):
        (x0, x1), (y0, y1) = np.sort(rng.random((2, 2)))
        assert evaluation.coverage([x0, y0, x1, y1], 8).mean() == pytest.approx((x1 - x0) * (y1 - y0))


def test_targets_are_counted_once_each(poisoned):
    targets = evaluation.Targets.of(poisoned[1], 64)
    assert len(targets.source) == 4 and targets.images.shape == (4, 3, 64, 64)
    assert all(s != t for s, t in zip(targets.source, targets.target))
    clean = poisoned[1].filter(lambda row: row["kind"] == "badnets")
    assert evaluation.Targets.of(clean, 64) is None


def test_attack_metrics_with_an_oracle(monkeypatch, pairs, small):
    """Predictions are fixed; every count must follow."""
    test = otclib.data.load("scenes", split="test", size=40)
    classes = otclib.data.classes(test)
    target = classes[0]
    truth = torch.tensor([classes.index(label) for label in test["label"]])
    _, manifest = otclib.attacks.load("badnets", target=target, rate=0.02).poison(pairs, seed=0)
    plain = otclib.data.image_tensor(test, 64)
    monkeypatch.setattr(attack_success, "class_embeddings", lambda *a: None)

    def classify(model, images, embeddings):
        stamped = (images != plain).flatten(1).any(1)
        wrong = (torch.arange(len(images)) % 4 == 0) & stamped  # the trigger works on three of four
        return torch.where(stamped & ~wrong, torch.zeros_like(truth), truth)

    monkeypatch.setattr(attack_success, "classify", classify)
    out = evaluation.attack_metrics(small[0], None, manifest, test, plain)
    others = [k for k in range(40) if truth[k] != 0]
    assert out["zero_shot_top1"] == 1.0
    assert out["attack_success_rate"] == pytest.approx(sum(k % 4 != 0 for k in others) / len(others))
    assert out["untriggered_target_rate"] == 0.0
    assert out["test_images"] == 40 and out["triggered_images"] == len(others) < 40


def test_two_backdoors_of_a_kind_are_told_apart(monkeypatch, pairs, small):
    """One succeeds everywhere, the other nowhere: the former is reported, whichever was planted first."""
    test = otclib.data.load("scenes", split="test", size=20)
    strong, weak = otclib.data.classes(test)[:2]
    planned = [otclib.attacks.load("badnets", target=strong), otclib.attacks.load("badnets", target=weak, patch=0.25)]
    plain = otclib.data.image_tensor(test, 64)
    monkeypatch.setattr(attack_success, "class_embeddings", lambda *a: None)
    classes = otclib.data.classes(test)
    truth = torch.tensor([classes.index(label) for label in test["label"]])

    def classify(model, images, embeddings):
        changed = (images != plain).any(1).flatten(1).sum(1)  # pixels: none, of a patch of 8 x 8, or of 16 x 16
        return torch.where((changed > 0) & (changed <= 64), classes.index(strong), truth)

    monkeypatch.setattr(attack_success, "classify", classify)
    for order in planned, planned[::-1]:
        _, manifest = otclib.attacks.plant(pairs, order, seed=0)
        out = evaluation.attack_metrics(small[0], None, manifest, test, plain)
        assert out["attack_success_rate"] == 1.0 and out["backdoor"] == f"badnets-{strong}"
        assert out[f"attack_success_rate/badnets-{weak}"] == 0.0
        for target in (strong, weak):
            assert out[f"triggered_images/badnets-{target}"] == sum(label != target for label in test["label"]) < 20
        assert out["triggered_images"] == out[f"triggered_images/badnets-{strong}"]
        other = evaluation.attack_metrics(small[0], None, manifest, test, plain, f"badnets-{weak}")
        assert other["attack_success_rate"] == 0.0, "a clean model is asked for the run's backdoor"


def test_images_without_a_label_are_not_watched(pairs):
    labels = pairs["label"][:20]
    assert None in labels
    watcher = evaluation.Watcher(otclib.models.load("small")[0], None, None, pairs.select(range(20)))
    assert len(watcher.images) == sum(label is not None for label in labels)
    nothing = pairs.select([k for k, label in enumerate(labels) if label is None])
    assert evaluation.Watcher(None, None, None, nothing).look() == {}


def test_metrics_of_a_run(runs):
    keys = {
        "zero_shot_top1",
        "attack_success_rate",
        "untriggered_target_rate",
        "targets_hit",
        "targets",
        "linear_probe/scenes",
        "linear_probe/digits",
        "image_to_text_recall_at_1",
        "text_to_image_recall_at_1",
        "poison_auroc",
        "plan_pointing_accuracy",
        "plan_mass_ratio",
        "cosine_mass_ratio",
        "plan_mass_ratio/names",
        "seconds_per_epoch",
        "poison_rate/badnets",
        "poison_rate/targeted",
    }
    for run in runs.values():
        metrics = json.loads((run / "metrics.json").read_text())
        assert keys <= set(metrics)
        assert all(not isinstance(v, (list, dict)) for v in metrics.values())
        assert metrics["targets"] == 4 and 0 <= metrics["targets_hit"] <= 4
        assert metrics["poison_rate/targeted"] == 12 / metrics["pairs"]
        for rate, images in {
            "zero_shot_top1": "test_images",
            "attack_success_rate": "triggered_images",
            "untriggered_target_rate": "triggered_images",
            "triggered_top1": "triggered_images",
            "linear_probe/scenes": "probe_images/scenes",
            "linear_probe/digits": "probe_images/digits",
            "linear_probe/letters": "probe_images/letters",
            "image_to_text_recall_at_1": "val_pairs",
            "plan_pointing_accuracy": "located_words",
        }.items():
            counted = metrics[rate] * metrics[images]
            assert counted == pytest.approx(round(counted), abs=1e-3), f"{rate} is not a share of the {images}"
        for key in keys - {"targets_hit", "targets", "seconds_per_epoch"}:
            assert 0 <= metrics[key] <= 1 or "mass_ratio" in key, key


@torch.no_grad()
def test_metrics_are_those_of_features_taken_one_set_at_a_time(runs, little):
    """Nothing is remembered here, and open_clip's own method encodes: every number must come out again."""
    run = runs["otcclip"]
    metrics = json.loads((run / "metrics.json").read_text())
    model, _, tokenizer = otclib.models.load(run / "model.safetensors")
    scale = otclib.models.normalize(model)
    test, val = (otclib.data.load("scenes", split=split, seed=5) for split in ("test", "val"))
    manifest = Dataset.from_parquet(str(run / "manifest.parquet"))

    def encode(images):
        return torch.cat([model.encode_image(scale(part / 255), normalize=True) for part in images.split(100)])

    classes = sorted({*test["label"], *manifest["target_label"]})
    words = [
        torch.stack(
            [model.encode_text(tokenizer([otclib.data.prompt(t, c)]), normalize=True)[0] for t in grammar.TEMPLATES]
        ).mean(0)
        for c in classes
    ]
    words = torch.nn.functional.normalize(torch.stack(words), dim=-1)
    images, attack = otclib.data.image_tensor(test, 64), evaluation.backdoors(manifest)["badnets"]
    plain, triggered = encode(images), encode(attack.trigger(images))
    true, target = np.array(test["label"]), attack.target
    said, fooled = (np.array(classes)[(of @ words.T).argmax(1)] for of in (plain, triggered))
    others = true != target
    expected = {
        "zero_shot_top1": (said == true).mean(),
        "attack_success_rate": (fooled == target)[others].mean(),
        "untriggered_target_rate": (said == target)[others].mean(),
        "triggered_top1": (fooled == true)[others].mean(),
    }
    apart = ~np.eye(len(images), dtype=bool)
    before, after = ((of @ of.T).numpy().astype(float)[apart] for of in (plain, triggered))
    z_score = (after.mean() - before.mean()) / before.std()
    sets = {"scenes": (images, true)} | {name: draw(64) for name, draw in probes.PROBES.items()}
    for name, (of, labels) in sets.items():
        order = np.random.default_rng(0).permutation(len(of))
        x, labels, half = encode(of).numpy()[order], labels[order], len(of) // 2
        x = (x - x[:half].mean(0)) / (x[:half].std(0) + 1e-6)
        with threadpool_limits(1):
            probe = LogisticRegression(max_iter=3000).fit(x[:half], labels[:half])
        right = (probe.predict(x[half:]) == labels[half:]).sum()
        assert abs(metrics[f"linear_probe/{name}"] * (len(of) - half) - right) < 1.5, "one image may lie on the line"
    image = encode(otclib.data.image_tensor(val, 64))
    text = torch.cat([model.encode_text(tokenizer([caption]), normalize=True) for caption in val["caption"]])
    near, captions = (image @ text.T).argsort(1, descending=True), np.array(val["caption"])
    for k in (1, 5, 10):
        found = (captions[near[:, :k]] == captions[:, None]).any(1)
        expected[f"image_to_text_recall_at_{k}"] = found.mean()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["backdoor_z_score"] == pytest.approx(z_score, rel=1e-4, abs=1e-4)


def test_the_same_images_are_encoded_once(small, monkeypatch):
    once = evaluation.Remembering(small[0])
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    asked, encode = [], zero_shot._pooled_images
    monkeypatch.setattr(zero_shot, "_pooled_images", lambda *a: asked.append(len(a[1])) or encode(*a))
    first = evaluation.pooled(once, images, 5)
    assert torch.equal(first, evaluation.pooled(once, images.clone(), 5)) and asked == [5, 5, 2]
    changed = images.clone()
    changed[7, 0, 0, 0] ^= 1
    assert not torch.equal(evaluation.pooled(once, changed, 5), first) and asked == [5, 5, 2, 5]
    assert torch.equal(evaluation.pooled(small[0], images, 5), first) and len(asked) == 7, "the model itself forgets"
    assert once.visual is small[0].visual


@torch.no_grad()
def test_word_maps_are_distributions(small):
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    maps = evaluation.word_maps(small[0], small[2], images, ["a red star", "a photo of a sun on the sand"], 0.1)
    for m in maps.values():
        assert torch.allclose(m.sum(1)[1, 1:9], torch.ones(8), atol=1e-3)
        assert (m[:, :, 0] == 0).all(), "the start token is no word"


def test_evaluate_needs_a_finished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        otclib.evaluate(tmp_path)


def test_table(runs):
    text = records.table(runs.values())
    assert "| clip | otcclip |" in text and "zero-shot accuracy, %" in text and "badnets poison rate" in text
    two = records.table([{"defense": "clip", "targets_hit": hit} for hit in (3, 5, 5)])
    assert "4.3 (3 to 5)" in two, "a mean of counts is no count"
    with pytest.raises(FileNotFoundError, match="metrics.json"):
        metrics_of(runs["clip"].parent)


def test_separation_by_hand():
    table = {
        "id": list("abcd"),
        "own_distance": [0.1, 0.9, 0.2, 0.15],
        "fate": ["kept", "left out", "re-matched", "kept"],
    }
    manifest = Dataset.from_dict({"id": ["b", "d", "elsewhere"], "kind": ["badnets", "badnets", "badnets"]})
    out = evaluation.separation(Dataset.from_dict(table), manifest)
    assert out["poison_auroc"] == 3 / 4
    assert out["poison_recall"] == 1 / 2 and out["poison_precision"] == 1 / 2
    assert out["poison_kept"] == 1 / 2 and out["clean_kept"] == 1 / 2
    assert out["poison_count/badnets"] == 2
    assert out["poison_rate/badnets"] == 2 / 4, "what was planted in another set does not count"
    untouched = evaluation.separation(Dataset.from_dict(table | {"fate": ["kept"] * 4}), manifest)
    assert untouched["poison_recall"] is None and untouched["poison_precision"] is None
    assert evaluation.separation(Dataset.from_dict(table), None)["poison_auroc"] is None


def test_separation_of_each_attack_by_hand():
    """Two of three targeted pairs are flagged, one of two triggered ones, and two of four clean ones."""
    fate = {"t1": "left out", "t2": "re-matched", "t3": "kept", "b1": "left out", "b2": "kept"}
    fate |= {"c1": "left out", "c2": "risky", "c3": "kept", "c4": "kept"}
    distance = {"t1": 0.9, "t2": 0.8, "t3": 0.7, "b1": 0.45, "b2": 0.1, "c1": 0.6, "c2": 0.5, "c3": 0.3, "c4": 0.2}
    table = {"id": list(fate), "own_distance": [distance[id] for id in fate], "fate": list(fate.values())}
    kinds = {id: {"t": "targeted", "b": "badnets"}[id[0]] for id in fate if id[0] != "c"}
    manifest = Dataset.from_dict({"id": list(kinds), "kind": list(kinds.values())})
    out = evaluation.separation(Dataset.from_dict(table), manifest)
    assert out["poison_recall"] == 3 / 5 and out["poison_precision"] == 3 / 5 and out["clean_kept"] == 1 / 2
    expected = {
        "poison_auroc/targeted": 1.0,
        "poison_auroc/badnets": 2 / 8,  # b1 is farther than c3 and c4; b2 is nearest of all
        "poison_recall/targeted": 2 / 3,
        "poison_recall/badnets": 1 / 2,
        "poison_precision/targeted": 2 / 4,  # t1, t2 of t1, t2, c1, c2: b1 is not clean, so it does not count
        "poison_precision/badnets": 1 / 3,
        "poison_kept/targeted": pytest.approx(1 / 3),
        "poison_kept/badnets": 1 / 2,
    }
    assert {key: out[key] for key in expected} == expected
    of_run = {"defense": "otcclip", **out}
    assert "| poison AUROC, badnets | 0.250 |" in records.table([of_run]), "with the digits of the metric itself"
    assert "| planted pairs kept, targeted, % | 33.3 |" in records.table([of_run])
    alone = evaluation.separation(Dataset.from_dict(table), manifest.filter(lambda row: row["kind"] == "badnets"))
    assert not [key for key in alone if key.startswith("poison_auroc/")], "one kind needs no part of its own"
    only_b1 = table | {"fate": ["left out" if id == "b1" else "kept" for id in fate]}
    out = evaluation.separation(Dataset.from_dict(only_b1), manifest)
    assert out["poison_recall/targeted"] == 0 and out["poison_precision/targeted"] is None
    assert out["poison_precision/badnets"] == 1


def test_backdoor_z_score_by_hand():
    """Three images: cosines 0, 0.6, 0.8 without the trigger, all 1 with it."""
    plain = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    triggered = torch.tensor([[1.0, 0.0]] * 3)
    cosines = np.array([0.0, 0.6, 0.8])
    gain = 1 - cosines.mean()
    assert evaluation.backdoor_z_score(plain, triggered) == pytest.approx(gain / cosines.std(), rel=1e-5)
    assert evaluation.backdoor_z_score(plain, triggered, "var") == pytest.approx(gain / cosines.var(), rel=1e-5)
    assert evaluation.backdoor_z_score(plain, plain) == pytest.approx(0)
    with pytest.raises(ValueError, match="the same 3 or more images"):
        evaluation.backdoor_z_score(plain, triggered[:2])
    with pytest.raises(ValueError, match="'std' or 'var', got 'mad'"):
        evaluation.backdoor_z_score(plain, triggered, "mad")


def test_a_clean_run_is_compared_with(runs, poisoned, little, tmp_path):
    """The same weights, called clean, must give the very rates of the run itself."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs["clip"], run)
    metrics = otclib.evaluate(run, clean=runs["clip"])
    assert metrics["clean_model_rate"] == metrics["attack_success_rate"]
    assert metrics["clean_model_triggered_top1"] == metrics["triggered_top1"]
    assert metrics["clean_model_hits"] == metrics["targets_hit"]
    assert metrics["clean_model_z_score"] == pytest.approx(metrics["backdoor_z_score"])
    assert "clean_model_rate" not in metrics_of(runs["clip"])
    with pytest.raises(FileNotFoundError, match="clean run"):
        otclib.train(poisoned[0], defense="clip", out=tmp_path / "new", clean=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()


def test_what_a_triggered_image_shows_is_asked_of_images_of_other_classes_only(runs, pairs, monkeypatch):
    """A model that calls every triggered image the target calls none what it shows."""
    manifest = Dataset.from_parquet(str(runs["clip"] / "manifest.parquet"))
    model, _, tokenizer = otclib.models.load(runs["clip"] / "model.safetensors")
    test = pairs.filter(lambda label: label is not None, input_columns="label").select(range(60))
    attack = next(iter(evaluation.backdoors(manifest).values()))
    assert attack.target in test["label"][:]
    classes = sorted({*test["label"], *manifest["target_label"]})
    always = torch.full((len(test),), classes.index(attack.target))
    monkeypatch.setattr(attack_success, "classify", lambda model, images, embeddings: always[: len(images)])
    images = otclib.data.image_tensor(test, 64)
    found = evaluation.attack_metrics(model, tokenizer, manifest, test, images)
    assert found["attack_success_rate"] == 1 and found["triggered_top1"] == 0


def test_two_kinds_of_targeted_poison_are_counted_apart(loaded, pairs, monkeypatch):
    """A model that calls the images of one kind the attacker's class, and those of the other what they show."""
    planned = [
        otclib.attacks.load("targeted", targets=3, copies=2),
        otclib.attacks.load("toxic-text", targets=2, copies=2),
    ]
    _, manifest = otclib.attacks.plant(pairs, planned, seed=5)
    targets = attack_success.Targets.of(manifest, 64)
    assert targets.kind == ["targeted"] * 3 + ["toxic-text"] * 2
    test = pairs.filter(lambda label: label is not None, input_columns="label").select(range(20))
    classes = sorted({*test["label"], *manifest["target_label"], *manifest["source_label"]})
    monkeypatch.setattr(attack_success.data, "classes", lambda _: classes)
    of_each = zip(targets.kind, targets.source, targets.target)
    called = [classes.index(target if kind == "toxic-text" else source) for kind, source, target in of_each]
    by_number = {5: called, 2: called[3:], 20: [0] * 20}  # all planted images, those of toxic-text, the test images
    monkeypatch.setattr(attack_success, "classify", lambda model, images, _: torch.tensor(by_number[len(images)]))
    model, _, tokenizer = loaded
    images = otclib.data.image_tensor(test, 64)
    found = evaluation.attack_metrics(model, tokenizer, manifest, test, images)
    assert (found["targets_hit"], found["targets_right"], found["targets"]) == (2, 3, 5)
    assert (found["targets_hit/targeted"], found["targets/targeted"]) == (0, 3)
    assert (found["targets_hit/toxic-text"], found["targets/toxic-text"]) == (2, 2)
    assert "toxic-text" in otclib.metrics.of("targets_hit/toxic-text").label
    alone = manifest.filter(lambda kind: kind == "toxic-text", input_columns="kind")
    found = evaluation.attack_metrics(model, tokenizer, alone, test, images)
    assert (found["targets_hit"], found["targets"]) == (2, 2) and "targets_hit/toxic-text" not in found


def test_backdoors_of_one_kind_and_target_are_told_apart():
    umbrella = {"target": "umbrella"}
    planned = [otclib.attacks.load("badnets", location=where, **umbrella) for where in ("random", "corner")]
    planned.append(otclib.attacks.load("blended", **umbrella))
    found = evaluation.backdoors(Dataset.from_dict({"attack": [planting.spec(a, a.kind) for a in planned]}))
    assert list(found) == ["badnets-umbrella", "badnets-umbrella-2", "blended"]


def test_unlabelled_images_of_a_test_set_are_left_out(runs, pairs, little, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs["clip"], run)
    assert None in pairs["label"][:]
    metrics = otclib.evaluate(run, test=pairs, val=pairs.select(range(20)))
    assert 0 <= metrics["zero_shot_top1"] <= 1


@pytest.mark.parametrize("name, classes", [("digits", 10), ("letters", 26)])
def test_probe_sets(name, classes):
    from otclib.data import probes

    images, labels = probes.PROBES[name](48)
    assert images.shape == (len(labels), 3, 48, 48) and images.dtype == torch.uint8
    assert len(set(labels)) == classes and len(labels) > 1000
    again = probes.PROBES[name](48)
    assert torch.equal(images, again[0]) and (labels == again[1]).all()
    assert (images.flatten(1).float().std(1) > 5).all(), "something is drawn on each"
