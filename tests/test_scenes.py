"""The embedded set: deterministic, varied, with a truth for every content word."""

import numpy as np
import pytest

import otclib
from otclib.data import drawing, grammar, parallel, scenes


def test_same_seed_same_scenes_whatever_the_workers():
    one = list(scenes.generate("train", 30, seed=3, workers=1))
    two = list(scenes.generate("train", 30, seed=3, workers=2))
    assert one == two
    assert list(scenes.generate("train", 30, seed=4, workers=1)) != one
    assert list(scenes.generate("val", 30, seed=3, workers=1))[0]["image"] != one[0]["image"]


def test_a_prefix_of_a_larger_set():
    assert list(scenes.generate("train", 40, workers=1))[:10] == list(scenes.generate("train", 10, workers=1))


def test_the_same_scene_at_any_size():
    small, large = (list(scenes.generate("train", 20, size=s, workers=1)) for s in (64, 128))
    assert [r["caption"] for r in small] == [r["caption"] for r in large]
    assert [r["objects"] for r in small] == [r["objects"] for r in large]


def test_every_class_is_drawn_and_drawn_differently():
    rng = np.random.default_rng(0)
    pictures = []
    for name in grammar.OBJECTS:
        thing = grammar.Thing(name, "red", (200, 35, 40), "large", 0.6, 0.5, 0.5, 0.0)
        scene = grammar.Scene("paper", (0, 0, 0, 0), (1.0, 1.0, 1.0), [thing])
        pictures.append(drawing.render(scene).astype(float))
        assert name in grammar.describe(scene, rng)[0] or any(
            w in grammar.describe(scene, rng)[0] for w in otclib.data.words_for(name)
        )
    assert len(grammar.OBJECTS) >= 40
    flat = np.stack(pictures).reshape(len(pictures), -1)
    apart = np.abs(flat[:, None] - flat[None]).mean(-1) + 1e9 * np.eye(len(flat))
    assert apart.min() > 2, "two classes look alike"


def test_rows(pairs):
    assert {"id", "image", "caption", "label", "objects", "ground", "words"} <= set(pairs.column_names)
    assert len(set(pairs["id"])) == len(pairs)
    for row in pairs:
        assert row["image"].size == (64, 64)
        assert 1 <= len(row["objects"]) <= 3
        assert (row["label"] is None) == (len(row["objects"]) > 1)
        assert row["words"], "every caption has a content word"
        for word in row["words"]:
            assert row["caption"][word["start"] : word["end"]] == word["text"]
            assert -1 <= word["object"] < len(row["objects"])
            known = {row["ground"], *grammar.GROUNDS[row["ground"]][2]}
            if word["object"] >= 0:
                thing = row["objects"][word["object"]]
                known = {*otclib.data.words_for(thing["name"]), thing["colour"], *grammar.COLOURS[thing["colour"]][1]}
                known |= {thing["size"], *grammar.SIZES[thing["size"]]}
            assert word["text"] in known
        for thing in row["objects"]:
            left, top, right, bottom = thing["box"]
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def test_the_object_is_inside_its_box():
    thing = grammar.Thing("heart", "red", (200, 35, 40), "small", 0.4, 0.3, 0.6, 10.0)
    with_it = drawing.render(grammar.Scene("sand", (0, 0, 0, 0), (1.0, 1.0, 1.0), [thing])).astype(int)
    without = drawing.render(grammar.Scene("sand", (0, 0, 0, 0), (1.0, 1.0, 1.0), [])).astype(int)
    changed = np.abs(with_it - without).sum(-1) > 60
    cover = np.kron(otclib.evaluation.coverage(thing.box, 64).reshape(64, 64), np.ones((1, 1)))
    assert changed.sum() > 100
    assert (changed & (cover > 0)).sum() / changed.sum() > 0.98


def test_test_split_holds_one_object():
    test = otclib.data.load("scenes", split="test", size=50)
    assert None not in test["label"]


def test_names():
    assert otclib.data.names("a photo of a red Parasol", "umbrella")
    assert not otclib.data.names("a startling photo", "star")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("umbrella", "an umbrella"),
        ("star", "a star"),
        ("scissors", "scissors"),
        ("Apple", "an Apple"),
        ("unicorn", "a unicorn"),
        ("uninhabited island", "an uninhabited island"),
        ("hourglass", "an hourglass"),
        ("honeycomb", "a honeycomb"),
    ],
)
def test_articles(word, said):
    assert otclib.data.with_article(word) == said
    assert otclib.data.prompt("look at a {}", word) == f"look at {said}"
    assert otclib.data.prompt("a large {}", word) == f"a large {word}"


def test_prompts_are_phrases_of_the_captions(pairs):
    """Every prompt of every class is what the grammar says of a plain object."""
    prompts = [otclib.data.prompt(t, name) for t in otclib.data.templates(pairs) for name in grammar.OBJECTS]
    forms = {form.format(otclib.data.with_article(name)) for form in grammar.FORMS for name in grammar.OBJECTS}
    assert len(set(prompts)) == 5 * len(grammar.OBJECTS) and set(prompts) <= forms
    others = otclib.data.templates(pairs.remove_columns("objects"))
    assert len(others) == 80
    assert "a photo of an apple." in {otclib.data.prompt(t, "apple") for t in others}
    assert not [t for t in others if " a apple" in f" {otclib.data.prompt(t, 'apple')}"]


@pytest.mark.parametrize("has_affinity", [True, False])
def test_workers_are_as_many_as_asked_for(has_affinity, monkeypatch):
    class Pool:
        def __init__(self, workers, *_):
            asked.append(workers)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        imap = map

    asked = []
    monkeypatch.setattr(parallel, "get_context", lambda _: type("Context", (), {"Pool": Pool}))
    monkeypatch.setattr(scenes, "_rows", lambda task: [task])
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    if not has_affinity:
        monkeypatch.delattr(parallel.os, "sched_getaffinity", raising=False)
    assert len(list(scenes.generate("train", 1000, workers=3))) == 4
    list(scenes.generate("train", 1000, workers=1))
    list(scenes.generate("train", 1000, workers=9))
    assert asked == [3, 4], "three as asked, none for one, no more than there are tasks"
    list(scenes.generate("train", 1000))
    assert has_affinity or asked[-1] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "cifar"}, ("cifar", "scenes")),
        ({"name": "scenes", "split": "dev"}, ("dev", "train")),
        ({"name": "scenes", "size": 0}, ("size", "0")),
        ({"name": "scenes", "image_size": 4}, ("image_size", "4")),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError) as error:
        otclib.data.load(**arguments)
    assert all(w in str(error.value) for w in words)
