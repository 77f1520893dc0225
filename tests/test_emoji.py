"""Drawings by many artists: fetched once and verified, held out by artist, composed with the truth of every word."""

import io
import re
import shutil
from collections import Counter

import artists
import numpy as np
import pytest
from PIL import Image

import otclib
from otclib.data import emoji, grammar, parallel
from otclib.data.emoji import colours, scenes, sources, things
from otclib.explorer import Explorer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield artists.installed(patch, tmp_path_factory.mktemp("emoji"))
    for function in artists.forgotten():
        function.cache_clear()


def load(root, name="emoji-scenes", **options):
    return otclib.data.load(name, root=root, **({"classes": 8} if name == "emoji-scenes" else {}), **options)


# -- the packages ---------------------------------------------------------------------------------------------------


def test_without_npm_one_sentence_says_what_to_do(root, monkeypatch, tmp_path):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    sources.packages.cache_clear()
    with pytest.raises(
        FileNotFoundError, match=r"npm, which is not installed\. Install Node.js, or run `npm pack .*root"
    ):
        sources.packages()


def test_npm_fetches_what_is_missing_once(root, monkeypatch, tmp_path):
    calls = []

    def run(command, **_):
        name, _, version = command[2].rpartition("@")
        package = next(p for p in [*sources.ARTISTS.values(), sources.WORDS] if p.name == name)
        assert version == package.version
        shutil.copy(root / package.file, command[command.index("--pack-destination") + 1])
        calls.append(name)
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(sources.shutil, "which", lambda name: name)
    monkeypatch.setattr(sources.subprocess, "run", run)
    for _ in range(2):
        sources.packages.cache_clear()
        assert sorted(p.name for p in sources.packages().iterdir()) == sorted(p.name for p in root.iterdir())
    assert len(calls) == len(set(calls)) == 7


def test_a_changed_file_and_a_missing_one_are_refused(root, tmp_path):
    folder = tmp_path / "packages"
    shutil.copytree(root, folder)
    (folder / sources.ARTISTS["noto"].file).write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"is not @iconify-json/noto@1\.2\.9: its SHA-512 is .*, not "):
        sources.packages(folder)
    (folder / sources.ARTISTS["noto"].file).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks iconify-json-noto-1\.2\.9\.tgz"):
        sources.packages(folder)


def test_every_artist_and_licence_is_named():
    line = emoji.attribution()
    for artist, package in sources.ARTISTS.items():
        assert artist in line and package.by in line and package.licence in line
    assert len(sources.ARTISTS) == 6 and all(
        re.fullmatch(r"[A-Za-z0-9+/]{86}==", p.sha512) for p in sources.ARTISTS.values()
    )


# -- things -----------------------------------------------------------------------------------------------------------


def test_neither_people_nor_flags(root):
    names = {thing.name for thing in things.things(root)}
    assert names == {name for name, _, _, group in artists.THINGS if group not in (1, 9)}
    assert {thing.name for thing in things.ranked(root)} == names - {"orca", "melting face"}


def test_concrete_things_with_short_names_come_first(root):
    ranked = [thing.name for thing in things.ranked(root)]
    assert ranked[-2:] == ["hot dog", "grinning face"]


def test_a_synonym_names_few_things_and_no_other_thing(root):
    by_name = {thing.name: thing for thing in things.things(root)}
    assert by_name["cat"].synonyms == ("kitty",), "'animal' is of many things, 'dog' is another one"
    assert by_name["cat"].keywords == ("kitty", "animal", "dog")
    assert by_name["rocket"].keywords == ("space", "launch"), "what has no letter is no word"


def test_an_alias_and_a_drawing_that_is_no_square(root):
    drawn = emoji.drawings.drawings("noto", 48, root)
    assert "1f408" in drawn, "found by its alias"
    for png in drawn.values():
        assert Image.open(io.BytesIO(png)).size == (48, 48)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((200, 35, 40), "red"), ((240, 150, 30), "orange"), ((250, 210, 40), "yellow"), ((60, 160, 70), "green")]
    + [((40, 90, 200), "blue"), ((140, 60, 190), "purple"), ((235, 100, 160), "pink"), ((115, 70, 35), "brown")]
    + [((130, 130, 132), "grey"), ((15, 15, 18), "black"), ((250, 250, 250), "white")],
)
def test_a_colour_is_named_where_one_prevails(rgb, name):
    plain = Image.new("RGBA", (10, 10), (*rgb, 255))
    assert colours.prevailing(plain) == name
    half = plain.copy()
    half.paste((0, 255, 255, 255) if name != "blue" else (255, 0, 0, 255), (0, 0, 5, 10))
    assert colours.prevailing(half) is None
    assert colours.prevailing(Image.new("RGBA", (4, 4))) is None


# -- emoji: one drawing a row -----------------------------------------------------------------------------------------


def test_the_artist_of_the_test_split_is_in_no_other(root):
    rows = {split: load(root, "emoji", split=split) for split in ("train", "val", "test")}
    assert set(rows["test"]["artist"]) == {"emojione"}
    assert "emojione" not in {*rows["train"]["artist"], *rows["val"]["artist"]}
    assert not set(rows["train"]["id"]) & set(rows["val"]["id"]), "a drawing is in one split"
    assert len(rows["train"]) + len(rows["val"]) == sum(
        len(t.icons) - ("emojione" in t.icons) for t in things.things(root)
    )
    other = load(root, "emoji", split="test", held_out="openmoji")
    assert set(other["artist"]) == {"openmoji"} and "emojione" in load(root, "emoji", held_out="openmoji")["artist"]


def test_captions_are_of_names_and_keywords(root):
    known = {thing.name: thing for thing in things.things(root)}
    table = load(root, "emoji", seed=3)
    named = 0
    for row in table:
        thing = known[row["label"]]
        assert "{" not in row["caption"]
        named += otclib.data.names(row["caption"], thing.name)
        assert otclib.data.names(row["caption"], thing.name) or all(
            part in thing.keywords for part in row["caption"].split(", ")
        )
    assert 0.5 < named / len(table) <= 1
    assert load(root, "emoji", seed=3)["caption"][:] == table["caption"][:] != load(root, "emoji", seed=4)["caption"][:]


def test_the_label_can_be_the_group_and_a_sample_can_be_drawn(root):
    groups = load(root, "emoji", label="group")
    assert set(groups["label"]) == set(groups["group"]) <= set(things.GROUPS.values())
    small, large = (load(root, "emoji", size=n)["id"][:] for n in (5, 20))
    assert len(small) == 5 and set(small) < set(large)
    with pytest.raises(ValueError, match=r"has \d+ drawings, asked for 9999"):
        load(root, "emoji", size=9999)
    with pytest.raises(ValueError, match="label is 'name' or 'group', got 'colour'"):
        load(root, "emoji", label="colour")


# -- emoji-scenes -----------------------------------------------------------------------------------------------------


def test_same_seed_same_scenes_whatever_the_workers(root):
    one, two = (list(scenes.generate("train", 300, seed=3, classes=8, root=root, workers=w)) for w in (1, 2))
    assert one == two
    assert one[:20] == list(scenes.generate("train", 20, seed=3, classes=8, root=root, workers=1))
    assert one[:20] != list(scenes.generate("train", 20, seed=4, classes=8, root=root, workers=1))


def test_objects_of_the_test_split_are_by_the_artist_held_out(root):
    for split, own in (("test", {"emojione"}), ("val", set(sources.ARTISTS) - {"emojione"})):
        table = load(root, split=split, size=200)
        assert {thing["artist"] for row in table["objects"] for thing in row} == own
    assert all(len(row) == 1 for row in load(root, split="test", size=50)["objects"])


def test_every_word_has_its_truth(root):
    known = {thing.name: thing for thing in things.things(root)}
    counts = Counter()
    for row in load(root, size=300):
        assert row["words"] and 1 <= len(row["objects"]) <= 3
        assert (row["label"] is None) == (len(row["objects"]) > 1)
        for word in row["words"]:
            assert row["caption"][word["start"] : word["end"]] == word["text"] and " " not in word["text"]
            if word["object"] < 0:
                continue
            thing = row["objects"][word["object"]]
            words = {*thing["name"].split(), *known[thing["name"]].synonyms}
            truth = words | {thing["colour"], thing["size"], *grammar.SIZES[thing["size"]]}
            assert word["text"] in truth
            counts["synonym"] += word["text"] in known[thing["name"]].synonyms
            counts["colour"] += word["text"] == thing["colour"]
    assert counts["synonym"] and counts["colour"]


def test_masks_show_what_changed_and_lie_in_their_boxes(root):
    rng = np.random.default_rng(0)
    chosen, drawn_by = things.ranked(root)[:8], ["noto", "twemoji"]
    for _ in range(20):
        scene = scenes.sample(rng, chosen, drawn_by, 3)
        image, masks = scenes.render(scene, 64)
        bare, _ = scenes.render(grammar.Scene(scene.ground, scene.texture, scene.tint), 64)
        changed = np.abs(image.astype(int) - bare).sum(-1) > 0
        assert len(masks) == len(scene.things) and not (np.sum(masks, axis=0) > 1).any(), "a pixel shows one object"
        assert (changed | ~np.any(masks, axis=0)).mean() > 0.999, "where nothing changed, nothing is visible"
    for row in load(root, size=40):
        for thing in row["objects"]:
            mask = emoji.mask(thing)
            assert mask.shape == (64, 64) and mask.dtype == bool and mask.any()
            left, top, right, bottom = (round(64 * edge) for edge in thing["box"])
            assert mask.sum() == mask[top:bottom, left:right].sum()


def test_the_same_scene_at_any_size(root):
    small, large = (load(root, size=20, image_size=s) for s in (64, 224))
    assert small["caption"][:] == large["caption"][:]
    assert large[0]["image"].size == (224, 224)
    boxes = [np.array([thing["box"] for row in table["objects"] for thing in row]) for table in (small, large)]
    assert np.abs(boxes[0] - boxes[1]).max() < 0.04


def test_what_cannot_be_drawn_is_refused(root):
    with pytest.raises(ValueError, match="classes must lie between 2 and 10, the things that all artists drew, got 11"):
        otclib.data.load("emoji-scenes", root=root, classes=11)
    with pytest.raises(ValueError, match="unknown artist 'me': choose one of noto"):
        load(root, held_out="me")
    with pytest.raises(ValueError, match="emoji-scenes has no option colours; it takes image_size, classes, held_out"):
        load(root, colours=3)
    with pytest.raises(ValueError, match="drawn sets have the splits train, val, test, not 'dev'"):
        load(root, split="dev")


def test_a_run_is_evaluated_on_its_own_world(root, tmp_path, monkeypatch):
    monkeypatch.setattr(otclib.data.scenes, "SPLITS", {"train": (200, 3), "val": (60, 3), "test": (40, 1)})
    pairs = load(root, size=120, seed=1)
    run = otclib.train(pairs, defense="clip", epochs=1, batch_size=32, out=tmp_path / "run", seed=1)
    found = otclib.runs.metrics_of(run)
    assert otclib.runs.config_of(run)["world"] == {"name": "emoji-scenes", "options": {"classes": 8}}
    assert {"zero_shot_top1", "linear_probe/emoji-scenes", "plan_pointing_accuracy", "plan_mass_ratio/names"} <= set(
        found
    )
    assert 0 < found["mass_chance"] < 0.4
    explorer = Explorer(run, pairs)
    assert explorer.figure(explorer.choices()[0][1]).axes


def test_the_number_of_cores_is_what_this_process_may_use(monkeypatch):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 3)
    monkeypatch.delattr(parallel.os, "sched_getaffinity", raising=False)
    assert parallel.cores() == 3


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which fetches the drawings, is not installed")
@pytest.mark.slow
def test_the_real_drawings(tmp_path, monkeypatch):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path))
    for function in artists.forgotten():
        function.cache_clear()
    try:
        sources.packages()
    except FileNotFoundError as error:
        pytest.skip(f"no registry to be had: {str(error)[:200]}")
    assert len(things.things()) == 1256 and len(things.ranked()) == 964
    sizes = {split: len(otclib.data.load("emoji", split=split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 6024, "val": 232, "test": 964}
    table = otclib.data.load("emoji-scenes", size=2000)
    assert len({thing["name"] for row in table["objects"] for thing in row}) == 200
