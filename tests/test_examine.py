"""A data set is read once, and the report says what is in it and what would be done to it."""

import io
import json

import numpy as np
import PIL.Image
import pytest
from copies import put
from hostile import CAPTIONS, IMAGES, LONG, WHOLE, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run as command

import otclib
from otclib import attacks, doctor
from otclib.data.examine import BITS, _alike, examine


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path / "cache"))


def encoded(image: PIL.Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def drawing(seed: int, side: int = 32) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return PIL.Image.fromarray(small).resize((side, side), PIL.Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Eight rows of six files: 0 and 1 show the same pixels, 2 nearly, and 5 does not decode; 3 has three captions."""
    again = drawing(0)
    nearly = PIL.Image.fromarray((np.asarray(drawing(0)) * 0.97).astype(np.uint8))
    files = [encoded(drawing(0)), encoded(again, "bmp"), encoded(nearly), encoded(drawing(3, 64).convert("L"))]
    for k, content in enumerate([*files, encoded(drawing(4, 48)), b"no image"]):
        put(tmp_path / f"set/{k}.image", content)
    rows = [(0, "a cat", "cat"), (1, "a Cat!", "cat"), (2, LONG, "cat"), (3, "one dog", "dog"), (3, "two dogs", "dog")]
    rows += [(3, "three " * 40, ""), (4, "a cow", "cow"), (5, "a cow", "")]
    lines = ["image,caption,label", *(f"{k}.image,{caption},{label}" for k, caption, label in rows)]
    put(tmp_path / "set/train.csv", "\n".join(lines))
    return tmp_path / "set"


def test_a_table_is_read_once(folder):
    found = examine(otclib.data.load("csv", root=folder, label_column="label", check="none"))
    assert (found.pairs, found.images, found.captions) == (8, 6, (1, 8 / 6, 3))
    assert found.words == len({"a", "cat", "very", "long", "caption", "one", "dog", "two", "dogs", "three", "cow"})
    assert (list(found.classes.items()), found.unlabelled) == ([("cat", 3), ("dog", 2), ("cow", 1)], 2)
    assert found.sizes == [(32, 32), (32, 32), (64, 64)] and found.modes == {"RGB": 4, "L": 1}
    assert found.same == [["0", "1"]] and found.alike == [["0", "2"]], "1 is the same as 0 and not listed again"
    assert list(found.undecoded) == ["7"] and not found.unusable and not found.left_out
    assert found.long == {"small": ["2", "5"], "CLIP": ["2"]}
    report = str(found)
    assert "classes     3, the most frequent is cat (3), the least cow (1); 2 pairs have no label" in report
    assert "images      6, captions of each: 1 to 3, 1.33 on average" in report
    assert "undecoded   1 (the first is 7: UnidentifiedImageError" in report


def test_captions_that_no_reader_looked_at(pairs):
    texts = ["", "!?", None, *pairs["caption"][3:5]]
    table = pairs.select(range(5)).remove_columns("caption").add_column("caption", texts)
    assert list(examine(table).unusable) == table["id"][:3]


@settings(max_examples=60, deadline=None)
@given(
    centres=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=6)), min_size=1, max_size=30),
)
def test_hashes_that_are_near_are_found_all(centres, flips):
    """Compared with a comparison of all of them."""
    values = {centres[c % len(centres)] ^ sum(1 << bit for bit in bits) for c, bits in flips}
    hashes = sorted(values)
    linked = {k: {k} for k in range(len(hashes))}
    for a in range(len(hashes)):
        for b in range(a):
            if (hashes[a] ^ hashes[b]).bit_count() <= BITS and linked[a] is not linked[b]:
                merged = linked[a] | linked[b]
                linked |= dict.fromkeys(merged, merged)
    wanted = {frozenset(map(str, group)) for group in linked.values() if len(group) > 1}
    found = _alike([[str(k)] for k in range(len(hashes))], np.array(hashes, np.uint64))
    assert {frozenset(group) for group in found} == wanted and len(found) == len(wanted)


def test_the_doctor_of_a_hostile_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 4095)
    bad = [(image, "a cat") for image, _ in IMAGES.values()] + [(WHOLE, caption) for caption, _ in CAPTIONS.values()]
    write("csv", tmp_path / "copy", [*bad, *((WHOLE, f"an umbrella {k}") for k in range(4)), (WHOLE, "a cow")])
    put(tmp_path / "copy/val.csv", "image,caption\n")
    code, said, error = command("doctor", "--data", "csv", "--root", tmp_path / "copy")
    assert code == 0 and not error
    assert f"pairs       5 of {5 + len(bad)} rows\n" in said
    assert "left out    1: its image is missing\n" in said and "left out    2: its caption is empty\n" in said
    assert "train.csv line 2: its image is missing" in said
    assert "the same    5 images in 1 group" in said
    assert f"splits      train {5 + len(bad)} rows, val 0 rows" in said
    assert "attack      badnets plants 1 pairs (20 %) for umbrella" in said
    assert "attack      targeted is refused: 16 images of different classes need as many labelled classes" in said


def test_the_doctor_says_what_the_attacks_then_do(pairs):
    lines = doctor.attack_lines(pairs)
    assert [line.split()[0] for line in lines] == list(attacks.ATTACKS)
    for line in lines:
        name, verb, n = line.split()[:3]
        if verb == "plants":
            assert int(n) == len(attacks.load(name).poison(pairs, seed=0)[1])
    assert any("plants" in line for line in lines)


def test_the_doctor_refuses_in_one_line(tmp_path):
    for words, reason in [
        (["--data", "flickr"], "unknown dataset 'flickr'"),
        (["--data", "csv"], "give its folder as root"),
        (["--data", "csv", "--root", tmp_path / "gone"], "which is not a folder"),
        (["--data", "scenes", "--data-options", "[]"], "--data-options takes a JSON object"),
    ]:
        code, said, error = command("doctor", *words)
        assert code == 2 and not said and reason in error and error.count("\n") == 1
    write("csv", tmp_path / "copy", [(WHOLE, "a cat"), (None, "a dog")])
    options = json.dumps({"on_error": "raise"})
    code, _, error = command("doctor", "--data", "csv", "--root", tmp_path / "copy", "--data-options", options)
    assert code == 2 and "train.csv line 3: its image is missing" in error
