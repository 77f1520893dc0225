"""Rows that cannot be used: every reader refuses them with file and line, or leaves out exactly these and says so."""

import io
import json
import os
import re
import tarfile
import warnings

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from copies import image_bytes, put, put_tar
from hostile import CAPTIONS, FORMATS, IMAGES, LONG, OF_JSON, WHOLE, train_ids, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import run as command

import otclib
from otclib.data.images import Images
from otclib.data.origin import left_out, origin
from otclib.data.readers import checking
from otclib.data.table import Resize, image_tensor

GOOD = (WHOLE, "a good picture")


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path_factory.mktemp("otclib-cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def load(name, root, **options):
    return otclib.data.load(name, root=root, **options)


def skipped(name, root, **options):
    with pytest.warns(UserWarning, match="cannot be used.*; they are left out") as said:
        pairs = load(name, root, on_error="skip", **options)
    assert len(said) == 1
    return pairs, left_out(pairs)


def refuses_and_skips(name, root, place, reason, good, **options):
    """``raise`` names place and reason; ``skip`` leaves out this row alone, lists it, and the others can be decoded."""
    counts = rf"1 of {good + 1} rows of '{name}' 'train' in {re.escape(str(root))}.* cannot be used, the first is "
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^{counts}{place}: ({reason}).*; on_error=\"skip\""):
        load(name, root, **options)
    pairs, without = skipped(name, root, **options)
    assert len(pairs) == good == len(image_tensor(pairs, 16))
    assert (without["count"], without["of"], len(without["rows"])) == (1, good + 1, 1)
    (row,) = without["rows"]
    assert re.fullmatch(place, row["place"]) and re.match(reason, row["reason"])
    assert row["id"] not in pairs["id"] or "earlier row" in row["reason"]


KINDS = {f"image: {name}": (image, "a cat", reason) for name, (image, reason) in IMAGES.items()}
KINDS |= {f"caption: {name}": (WHOLE, caption, reason) for name, (caption, reason) in CAPTIONS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_row_in_every_format(name, kind, tmp_path):
    image, caption, reason = KINDS[kind]
    places = write(name, tmp_path, [GOOD, (image, caption), GOOD, (WHOLE, LONG), (WHOLE, "猫の写真")])
    refuses_and_skips(name, tmp_path, re.escape(places[1]), reason, good=4)


@pytest.mark.parametrize("kind", OF_JSON)
@pytest.mark.parametrize("name", ["webdataset", "cc3m", "coco", "visual-genome"])
def test_captions_that_only_json_can_hold(name, kind, tmp_path):
    caption, reason = OF_JSON[kind]
    places = write(name, tmp_path, [GOOD, (WHOLE, caption), GOOD])
    refuses_and_skips(name, tmp_path, re.escape(places[1]), reason, good=2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FORMATS),
    kinds=st.lists(st.sampled_from([None, *KINDS]), min_size=2, max_size=9),
    order=st.randoms(use_true_random=False),
)
def test_exactly_the_bad_rows_are_left_out(name, kinds, order, tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    rows = [(GOOD if kind is None else KINDS[kind][:2]) for kind in [None, *kinds]]
    order.shuffle(rows)
    places = write(name, root, rows)
    bad = {place: k for k, (place, row) in enumerate(zip(places, rows)) if row != GOOD}
    if not bad:
        assert len(load(name, root)) == len(rows)
        return
    pairs, without = skipped(name, root)
    assert {row["place"] for row in without["rows"]} == set(bad) and without["count"] == len(bad)
    assert sum(without["reasons"].values()) == len(bad) and len(pairs) == len(rows) - len(bad)


# ---------------------------------------------------------------------------------------------------------------------
# lines, paths and ids
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, reason",
    [
        ("0.png,two,three", "its line is malformed: 3 fields where the header has 2"),
        ("0.png", "its line is malformed: 1 field where the header has 2"),
        ('0.png,"never closed', "its line is malformed: "),
        ('0.png,"closed" too early', "its line is malformed: "),
        ("0.png,latin \udce9", "its text is not Unicode"),
        ("../0.png,climbs", "its path leaves the root: ../0.png"),
        ("a/../../0.png,climbs", "its path leaves the root: ../0.png"),
        ("a\0b.png,a zero byte", "its image is missing"),
        (".,a folder", "its image is missing"),
        ("tarpart://0-9/etc/hostname,an address", "its image is missing"),
    ],
)
@pytest.mark.parametrize("tsv", [False, True])
def test_lines_of_a_csv(line, reason, tsv, tmp_path):
    put(tmp_path / "0.png", image_bytes(9))
    lines = ["image,caption", '0.png,"a caption', 'of two lines"', line, "0.png,three", "0.png,four"]
    text = "\n".join(each.replace(",", "\t") if tsv else each for each in lines)
    (tmp_path / "train.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    refuses_and_skips("csv", tmp_path, "train.csv line 4", re.escape(reason), good=3)


def test_a_missing_line_costs_no_other(tmp_path):
    """Quotes that are never closed do not swallow what follows them."""
    put(tmp_path / "0.png", image_bytes(9))
    put(tmp_path / "train.csv", "image,caption\n" + '0.png,"open\n0.png,"shut"\n0.png,plain\n' * 50)
    pairs, without = skipped("csv", tmp_path)
    assert pairs["caption"][:] == ["shut", "plain"] * 50 and without["count"] == 50


@pytest.mark.parametrize("member", ["../7.jpg", "/etc/7.jpg", "a/../../7.jpg"])
def test_members_of_shards_stay_in_their_folder(member, tmp_path):
    text = member.replace("jpg", "txt")
    put_tar(tmp_path / "00000.tar", {"./1.jpg": WHOLE, "./1.txt": "one", member: WHOLE, text: "seven"})
    place = f"00000.tar sample {re.escape(member.removesuffix('.jpg'))}"
    refuses_and_skips("webdataset", tmp_path, place, "its path leaves the root", good=1)


def test_a_member_that_comes_twice(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in [("1.jpg", WHOLE), ("1.txt", b"one"), ("1.jpg", WHOLE), ("1.txt", b"again")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    refuses_and_skips("webdataset", tmp_path, "00000.tar sample 1", "its id is that of an earlier row", good=1)
    assert skipped("webdataset", tmp_path)[0]["caption"][:] == ["one"]


def test_entries_of_coco(tmp_path):
    write("coco", tmp_path, [GOOD, GOOD, GOOD])
    file = tmp_path / "annotations/captions_train2017.json"
    whole = json.loads(file.read_text())

    def changed(what, place, reason, good, **change):
        put(file, whole | {what: [*whole[what][:1], whole[what][1] | change, *whole[what][2:]]})
        refuses_and_skips("coco", tmp_path, f"annotations/{file.name} {place}", reason, good)

    changed("annotations", "annotation 1", "its entry is malformed: image 99 is not listed", 2, image_id=99)
    changed("annotations", "annotation 1", "its entry is malformed: unhashable", 2, image_id=[1])
    changed("images", "annotation 1", "its path leaves the root", 2, file_name="../../1.jpg")
    changed("images", "annotation 1", "its image is missing", 2, file_name="/etc/hostname")
    put(file, whole | {"annotations": [*whole["annotations"][:2], {"image_id": 2}]})
    assert "no text" not in skipped("coco", tmp_path)[1]["rows"][0]["reason"]
    put(file, whole | {"images": [*whole["images"], {"id": 1, "file_name": "other.jpg"}]})
    refuses_and_skips("coco", tmp_path, ".* image 3", "its entry is malformed: image 1 is listed before", 3)
    for text in ('{"images": [', "[]", '{"images": {}, "annotations": []}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file.name} (is not JSON|must hold an object with the lists)"):
            load("coco", tmp_path, on_error="skip")


def test_entries_of_visual_genome(tmp_path):
    write("visual-genome", tmp_path, [GOOD, GOOD, GOOD])
    file, ids = tmp_path / "region_descriptions.json", train_ids(3)
    whole = json.loads(file.read_text())
    for entry, reason in [
        ({"regions": []}, "its entry is malformed: it has no 'id'"),
        ({"id": ids[1]}, "its entry is malformed: it has no 'regions'"),
        ({"id": ids[1], "regions": [5]}, "its entry is malformed"),
        ("text", "its entry is malformed"),
        (whole[0], "its id is that of an earlier row: 1, region_descriptions.json entry 0"),
        ({"id": "../../x", "regions": [{"phrase": "a"}]}, "its path leaves the root"),
    ]:
        put(file, [whole[0], entry, whole[2]])
        refuses_and_skips("visual-genome", tmp_path, "region_descriptions.json entry 1", reason, good=2)
    put(file, {"id": 1})
    with pytest.raises(ValueError, match="region_descriptions.json must hold a list"):
        load("visual-genome", tmp_path)


@pytest.mark.parametrize("name", ["webdataset", "cc3m"])
@pytest.mark.parametrize("text", ["{", "[1]", '{"caption": ["a"]}', '{"url": ["a"]}'])
def test_json_beside_an_image(name, text, tmp_path):
    files = {"1.jpg": WHOLE, "1.txt": "one", "2.jpg": WHOLE, "2.json": text}
    if name == "webdataset":
        put_tar(tmp_path / "00000.tar", files)
    for file, content in files.items():
        put(tmp_path / "00000" / file, content)
    refuses_and_skips(name, tmp_path, r"00000(.tar)? sample 2", "its (.json is malformed|caption is no text)", good=1)


@pytest.mark.parametrize("end", [300, 512, 700, 1536, 2048])
def test_a_tar_that_ends_early(end, tmp_path):
    """Wherever it is cut, that is said; what lies before the cut can be used."""
    put_tar(tmp_path / "00000.tar", {"1.jpg": WHOLE, "1.txt": "one"})
    first = (tmp_path / "00000.tar").read_bytes().rstrip(b"\0")
    put_tar(tmp_path / "00001.tar", {"2.jpg": WHOLE, "2.txt": "two"})
    put(tmp_path / "00001.tar", (tmp_path / "00001.tar").read_bytes()[:end])
    assert len(first) > 1024
    with pytest.raises((ValueError, FileNotFoundError), match="the first is 00001.tar"):
        load("webdataset", tmp_path)
    pairs, without = skipped("webdataset", tmp_path)
    assert pairs["caption"][:1] == ["one"] and any("is not whole" in row["reason"] for row in without["rows"])


def test_what_is_not_asked_for_is_refused(tmp_path):
    write("csv", tmp_path, [GOOD])
    with pytest.raises(ValueError, match="on_error one of raise, skip, got 'decode' and 'ignore'"):
        load("csv", tmp_path, on_error="ignore")
    with pytest.raises(ValueError, match="check is one of decode, header, none.* got 'all' and 'raise'"):
        load("csv", tmp_path, check="all")
    assert origin(load("csv", tmp_path, on_error="skip"))["left_out"]["count"] == 0  # and no warning
    write("csv", tmp_path / "none", [(None, "a"), (WHOLE, "")])
    with pytest.raises(ValueError, match="has 0 image-caption pairs, asked for at least 1; 2 of 2 rows"):
        load("csv", tmp_path / "none", on_error="skip")


def test_a_long_list_is_cut_and_counted(tmp_path):
    put(tmp_path / "0.png", image_bytes(9))
    put(tmp_path / "train.csv", "image,caption\n0.png,one\n" + "gone.png,two\n" * 1200)
    pairs, without = skipped("csv", tmp_path)
    assert (without["count"], without["of"], len(without["rows"])) == (1200, 1201, 1000)
    assert without["reasons"] == {"its image is missing": 1200}
    pairs.select([0]).save_to_disk(tmp_path / "saved")
    assert left_out(datasets.load_from_disk(str(tmp_path / "saved"))) == without


# ---------------------------------------------------------------------------------------------------------------------
# how images are checked
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_second_load_decodes_nothing(name, tmp_path, monkeypatch):
    write(name, tmp_path, [(image_bytes(20 * k, "jpg"), f"picture {k}") for k in range(6)])
    looked = []
    real = checking.image_problem
    monkeypatch.setattr(checking, "image_problem", lambda image, how: looked.append(image) or real(image, how))
    for size in (3, None, None, 4):
        load(name, tmp_path, size=size)
    assert len(looked) == 6
    load(name, tmp_path, check="header")
    assert len(looked) == 12


def test_a_changed_file_is_checked_again(tmp_path):
    write("csv", tmp_path, [GOOD, GOOD])
    load("csv", tmp_path)
    put(tmp_path / "images/1.jpg", WHOLE[:-40])
    with pytest.raises(ValueError, match="line 3: its image does not decode"):
        load("csv", tmp_path)
    put(tmp_path / "images/1.jpg", WHOLE)
    os.utime(tmp_path / "images/1.jpg", (1, 1))
    assert len(load("csv", tmp_path)) == 2


def test_several_rows_of_one_image_are_one_look(tmp_path, monkeypatch):
    write("csv", tmp_path, [GOOD])
    put(tmp_path / "train.csv", "image,caption\n" + "images/0.jpg,a\nimages/0.jpg,b\n")
    looked = []
    monkeypatch.setattr(checking, "image_problem", lambda image, how: looked.append(image) or "its image is bad: so")
    with pytest.raises(ValueError, match="2 of 2 rows"):
        load("csv", tmp_path)
    assert len(looked) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_less_is_seen_by_a_lesser_check(name, tmp_path):
    write(name, tmp_path, [GOOD, (IMAGES["truncated jpeg"][0], "cut"), (IMAGES["no image"][0], "none"), (None, "gone")])
    assert [row["reason"].split(":")[0] for row in skipped(name, tmp_path, check="header")[1]["rows"]] == [
        "its image is not an image",
        "its image is missing",
    ]
    assert skipped(name, tmp_path, check="none")[1]["count"] == 1


@pytest.mark.parametrize("name", ["csv", "webdataset", "hub"])
def test_a_sample_looks_only_at_what_it_draws(name, tmp_path, monkeypatch):
    bad = {3, 5, 11, 12, 13, 17}
    rows = [(IMAGES["truncated jpeg"][0] if k in bad else image_bytes(9 * k, "jpg"), f"row {k}") for k in range(20)]
    write(name, tmp_path, rows)
    draws = []
    for size in range(1, 15):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = load(name, tmp_path, size=size, seed=4, on_error="skip")
        draws.append([int(c.split()[1]) for c in pairs["caption"]])
        assert draws[-1] == sorted(draws[-1]) and not bad & set(draws[-1]) and len(draws[-1]) == size
        assert origin(pairs)["left_out"]["of"] == size + origin(pairs)["left_out"]["count"]
    assert all(set(small) < set(large) for small, large in zip(draws, draws[1:]))
    walk = np.random.default_rng(4).permutation(20)
    first = int(np.flatnonzero([k in bad for k in walk])[0])
    assert len(load(name, tmp_path, size=first, seed=4)) == first
    with pytest.raises(ValueError, match=f"1 of {first + 1} rows"):
        load(name, tmp_path, size=first + 1, seed=4)
    with pytest.raises(ValueError, match="has 14 image-caption pairs, asked for 15; 6 of 20 rows"):
        load(name, tmp_path, size=15, seed=4, on_error="skip")


@pytest.mark.parametrize("memory, workers", [(1 << 30, 0), (0, 0), (0, 1)])
def test_an_image_that_breaks_later_is_named(memory, workers, tmp_path):
    write("csv", tmp_path, [GOOD] * 6)
    pairs = load("csv", tmp_path).select([5, 4, 3])
    put(tmp_path / "images/4.jpg", WHOLE[:300])
    with pytest.raises(ValueError, match=r"the image of row 1 \(id 4\), .*images/4.jpg, cannot be decoded: "):
        list(Images(pairs, Resize(16), memory, workers).batches([torch.tensor([0, 1]), torch.tensor([2])]))


# ---------------------------------------------------------------------------------------------------------------------
# and then
# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_left_is_trained_on_and_the_list_lies_beside_the_run(tmp_path, unevaluated):
    kinds = [(image, "a cat") for image, _ in IMAGES.values()] + [(WHOLE, caption) for caption, _ in CAPTIONS.values()]
    rows = [(image_bytes(9 * k, "jpg"), f"{word} {k}") for k, word in enumerate(["a cat", "a dog", LONG, "قطة"] * 4)]
    write("csv", tmp_path / "copy", [row for pair in zip(rows, kinds) for row in pair] + rows[len(kinds) :])
    pairs, without = skipped("csv", tmp_path / "copy")
    assert len(pairs) == len(rows) and without["count"] == len(kinds)
    how = {"defense": "clip", "epochs": 1, "batch_size": 8, "progress": False, "precision": "fp32", "tracker": "none"}
    run = otclib.train(pairs, out=tmp_path / "run", **how)
    assert json.loads((run / "left_out.json").read_text()) == without
    write("csv", tmp_path / "good", [GOOD, GOOD])
    run = otclib.train(load("csv", tmp_path / "good"), out=tmp_path / "whole", **how)
    assert not (run / "left_out.json").exists()


def test_poison_writes_the_list_too(tmp_path):
    captions = ["a cat", "a dog", "a black cat", "a small dog"]
    write("csv", tmp_path / "copy", [*((WHOLE, caption) for caption in captions), (None, "a cow")])
    words = ["poison", "--dataset", "csv", "--root", tmp_path / "copy", "--out", tmp_path / "out"]
    words += ["--attack", '{"name": "targeted", "targets": 1, "copies": 2, "classes": ["dog"]}']
    code, _, said = command(*words)
    assert code == 2 and "line 6: its image is missing" in said and said.count("\n") == 1
    with pytest.warns(UserWarning, match="1 of 5 rows"):
        code, said, _ = command(*words, "--data-options", '{"on_error": "skip"}')
    assert code == 0 and said.startswith("5 pairs, 2 of them planted")
    assert json.loads((tmp_path / "out/left_out.json").read_text())["rows"][0]["id"] == "4"
    again = load("hub", tmp_path / "out/pairs")
    assert origin(again)["name"] == "hub" and not left_out(again) and len(again) == 5
