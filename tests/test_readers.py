"""Readers of photograph sets, each on a few 16 px images laid out exactly as the real copies are."""

from __future__ import annotations

import csv
import json
import os
import warnings

import datasets
import numpy as np
import pytest
from copies import image_bytes, put, put_tar

import otclib.data
from otclib.data import readers
from otclib.data.origin import origin
from otclib.data.readers import files
from otclib.data.readers import shards as tars

LOCAL = ("coco", "visual-genome", "cc3m", "csv", "webdataset")


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OTCLIB_CACHE", str(tmp_path_factory.mktemp("otclib-cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # every warning is expected, or a mistake
        yield


def load(name, root, split="train", **options):
    return otclib.data.load(name, root=root, split=split, **options)


def grey(row: dict) -> int:
    return int(np.asarray(row["image"].convert("L"))[8, 8])


def assert_table(pairs) -> None:
    """What every table promises, whatever it was read from."""
    assert pairs.column_names == ["id", "image", "caption", "label"]
    assert pairs.features == files.PAIRS
    assert len(set(pairs["id"])) == len(pairs)
    assert all(caption.strip() == caption != "" for caption in pairs["caption"])
    assert all(row["image"].size == (16, 16) for row in pairs)


# ---------------------------------------------------------------------------------------------------------------------
# copies, as they lie on disk
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Images 11, 12, 13; image n has the captions n.0 and n.1, and the annotations are not sorted by image."""
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 16, "width": 16} for n in (11, 12, 13)]
    notes = [{"image_id": n, "id": 100 * k + n, "caption": f"caption {n}.{k}"} for k in (0, 1) for n in (12, 11, 13)]
    categories = [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}]
    objects = [
        {"id": 1, "image_id": 11, "category_id": 18, "area": 90.5, "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 44, "area": 30.0, "iscrowd": 0},
        {"id": 3, "image_id": 12, "category_id": 18, "area": 99.0, "iscrowd": 1},
        {"id": 4, "image_id": 12, "category_id": 44, "area": 9.0, "iscrowd": 0},
    ]
    put(tmp_path / "annotations/captions_val2017.json", {"info": {}, "images": images, "annotations": notes})
    put(tmp_path / "annotations/instances_val2017.json", {"annotations": objects, "categories": categories})
    for n in (11, 12, 13):
        put(tmp_path / f"val2017/{n:012d}.jpg", image_bytes(10 * n, "jpg"))
    return tmp_path


@pytest.fixture
def visual_genome(tmp_path):
    """Images 1..80, the even ones in VG_100K_2, each with five regions of which two say the same."""
    texts = ("a clock", "a red car", "the man's shoe", "a clock", "  ")
    phrases = {n: [f"{text} {n}" if text.strip() else text for text in texts] for n in range(1, 81)}
    images = [{"id": n, "regions": [{"image_id": n, "phrase": p} for p in phrases[n]]} for n in phrases]
    put(tmp_path / "region_descriptions.json", images)
    for n in range(1, 81):
        put(tmp_path / ("VG_100K", "VG_100K_2")[n % 2 == 0] / f"{n}.jpg", image_bytes(3 * n, "jpg"))
    return tmp_path


@pytest.fixture
def table(tmp_path):
    """train.csv of ten rows, with quotes, commas and words that pandas would take for missing values."""
    texts = ["a cat, sleeping", 'the "big" dog', "NA", "null", "3.0", *(f"row {n}" for n in range(5, 10))]
    for n in range(10):
        put(tmp_path / f"images/{n}.png", image_bytes(20 * n))
    with open(tmp_path / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("image", "caption", "kind")]
            + [(f"images/{n}.png", text, "cat" if n % 2 else "") for n, text in enumerate(texts)]
        )
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    """Two tars of three samples: all three image forms, captions in .txt and .json, one label."""
    put_tar(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": image_bytes(10, "jpg"),
            "000000000.txt": "one ",
            "000000000.cls": "1\n",
            "000000001.txt": "two",
            "000000001.png": image_bytes(50),
            "000000002.webp": image_bytes(100, "webp"),
            "000000002.json": json.dumps({"caption": "three", "url": "u"}),
            "._000000002.webp": b"",
            "notes.md": "no sample",
        },
    )
    put_tar(
        tmp_path / "00001.tar",
        {f"part/{n:09d}.{e}": c for n in (3, 4, 5) for e, c in (("PNG", image_bytes(50 * n)), ("txt", f"more {n}"))},
    )
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------------
# one class per format
# ---------------------------------------------------------------------------------------------------------------------


class TestCoco:
    def test_first_caption_of_every_image(self, coco):
        pairs = load("coco", coco, "val")
        assert_table(pairs)
        assert {row["id"]: row["caption"] for row in pairs} == {str(n): f"caption {n}.0" for n in (11, 12, 13)}
        assert {row["id"]: grey(row) for row in pairs} == {"11": 110, "12": 120, "13": 130}
        assert set(pairs["label"]) == {None}

    def test_all_captions(self, coco):
        pairs = load("coco", coco, "val", captions="all")
        assert_table(pairs)
        assert pairs["id"][:4] == ["12-12", "11-11", "13-13", "12-112"]
        assert sorted(pairs["caption"]) == [f"caption {n}.{k}" for n in (11, 12, 13) for k in (0, 1)]

    def test_images_stay_files(self, coco):
        stored = load("coco", coco, "val").cast_column("image", datasets.Image(decode=False))[0]["image"]
        assert stored["bytes"] is None and stored["path"] == str(coco / "val2017/000000000012.jpg")

    def test_label_of_the_largest_object(self, coco):
        pairs = load("coco", coco, "val", labels="largest")
        assert {row["id"]: row["label"] for row in pairs} == {"11": "dog", "12": "bottle", "13": None}

    def test_wrong_options_and_missing_files(self, coco):
        with pytest.raises(ValueError, match="captions must be 'first' or 'all', got 'some'"):
            load("coco", coco, "val", captions="some")
        with pytest.raises(ValueError, match="labels must be None or 'largest', got 'all'"):
            load("coco", coco, "val", labels="all")
        with pytest.raises(FileNotFoundError, match="captions_train2017.json and .*train2017, not found"):
            load("coco", coco, "train")


class TestVisualGenome:
    def test_split_is_a_partition_that_the_seed_does_not_move(self, visual_genome):
        train, val = (load("visual-genome", visual_genome, split) for split in ("train", "val"))
        assert_table(train)
        assert sorted(map(int, [*train["id"], *val["id"]])) == list(range(1, 81))
        assert 1 <= len(val) <= 12
        assert list(val["id"]) == list(load("visual-genome", visual_genome, "val", seed=5)["id"])
        assert list(val["id"]) != list(load("visual-genome", visual_genome, "val", split_seed=3)["id"])

    def test_both_folders(self, visual_genome):
        assert all(abs(grey(row) - 3 * int(row["id"])) <= 2 for row in load("visual-genome", visual_genome))

    def test_phrases_are_drawn_by_seed(self, visual_genome):
        one, again, other = (list(load("visual-genome", visual_genome, seed=s)["caption"]) for s in (0, 0, 1))
        assert one == again != other
        assert {caption.rpartition(" ")[0] for caption in one} == {"a clock", "a red car", "the man's shoe"}

    def test_phrases_are_joined_and_distinct(self, visual_genome):
        for row in load("visual-genome", visual_genome, phrases=9):
            n = row["id"]
            assert sorted(row["caption"].split(", ")) == [f"a clock {n}", f"a red car {n}", f"the man's shoe {n}"]
        assert all(len(c.split(", ")) == 2 for c in load("visual-genome", visual_genome, phrases=2)["caption"])

    def test_images_without_regions_are_left_out(self, visual_genome):
        file = visual_genome / "region_descriptions.json"
        put(file, [image | {"regions": []} if image["id"] <= 40 else image for image in json.loads(file.read_text())])
        with pytest.warns(UserWarning, match=r"36 of 73 rows .* entry 0: its caption is empty; they are left out"):
            pairs = load("visual-genome", visual_genome, on_error="skip")
        assert min(map(int, pairs["id"])) > 40

    def test_wrong_options_and_missing_files(self, visual_genome, tmp_path_factory):
        with pytest.raises(ValueError, match="phrases must be at least 1, got 0"):
            load("visual-genome", visual_genome, phrases=0)
        with pytest.raises(FileNotFoundError, match="region_descriptions.json and .*VG_100K, not found"):
            load("visual-genome", tmp_path_factory.mktemp("empty"))


class TestCC3M:
    def put_lists(self, root, train=True, val=True):
        for name, wanted in (("Train_GCC-training.tsv", train), ("Validation_GCC-1.1.0-Validation.tsv", val)):
            if wanted:
                put(root / name, 'a "quoted" list\thttp://a/0.jpg\nlist one\thttp://a/1.jpg\n')

    @pytest.mark.parametrize("train, val", [("train.csv", "val.csv"), ("training/train.csv", "validation/valid.csv")])
    def test_csv_layout(self, tmp_path, train, val):
        for file, values in ((train, (40, 80)), (val, (120,))):
            folder = (tmp_path / file).parent
            put(tmp_path / file, "image,caption\n" + "".join(f"images/{v}.png,grey {v}\n" for v in values))
            for value in values:
                put(folder / f"images/{value}.png", image_bytes(value))
        pairs = load("cc3m", tmp_path)
        assert_table(pairs)
        assert [(grey(row), row["caption"]) for row in pairs] == [(40, "grey 40"), (80, "grey 80")]
        assert list(load("cc3m", tmp_path, "val")["caption"]) == ["grey 120"]

    def test_shards(self, shards):
        pairs = load("cc3m", shards)
        assert_table(pairs)
        assert list(pairs["caption"]) == ["one", "two", "three", "more 3", "more 4", "more 5"]
        with pytest.raises(FileNotFoundError, match="'cc3m' 'val' found no val.csv, 00000.tar or 00000/ in"):
            load("cc3m", shards, "val")

    def test_folders(self, tmp_path):
        for n in range(3):
            put(tmp_path / f"0000{n // 2}/0000{n // 2}000{n % 2}.jpg", image_bytes(60 * n, "jpg"))
            put(tmp_path / f"0000{n // 2}/0000{n // 2}000{n % 2}.txt", f"caption {n}")
        put(tmp_path / "00000_stats.json", {"count": 3})
        put(tmp_path / "00000.parquet", b"")
        pairs = load("cc3m", tmp_path)
        assert_table(pairs)
        assert list(pairs["id"]) == ["00000/000000000", "00000/000000001", "00001/000010000"]
        assert [(grey(row), row["caption"]) for row in pairs] == [(60 * n, f"caption {n}") for n in range(3)]

    @pytest.mark.parametrize("tars", [False, True])
    def test_captions_from_the_official_list(self, tmp_path, tars):
        """img2dataset run without --caption_col: only the URL tells which caption an image has."""
        self.put_lists(tmp_path)
        files = {}
        for n in (1, 0):
            files[f"00000000{1 - n}.jpg"] = image_bytes(90 * n + 10, "jpg")
            files[f"00000000{1 - n}.json"] = json.dumps({"url": f"http://a/{n}.jpg", "key": f"00000000{1 - n}"})
        if tars:
            put_tar(tmp_path / "00000.tar", files)
        else:
            for name, content in files.items():
                put(tmp_path / "00000" / name, content)
        pairs = load("cc3m", tmp_path)
        assert [(grey(row), row["caption"]) for row in pairs] == [(100, "list one"), (10, 'a "quoted" list')]

    def test_splits_side_by_side(self, tmp_path):
        """Shards named by split, and what lies in root beside the validation list alone."""
        for split in ("train", "validation"):
            put_tar(tmp_path / f"a/cc3m-{split}-0000.tar", {"0.png": image_bytes(0), "0.txt": split})
        assert list(load("cc3m", tmp_path / "a")["caption"]) == ["train"]
        assert list(load("cc3m", tmp_path / "a", "val")["caption"]) == ["validation"]
        put_tar(tmp_path / "b/00000.tar", {"0.png": image_bytes(0), "0.txt": "of the list beside it"})
        self.put_lists(tmp_path / "b", train=False)
        assert len(load("cc3m", tmp_path / "b", "val")) == 1
        with pytest.raises(FileNotFoundError, match="'cc3m' 'train' found no train.csv"):
            load("cc3m", tmp_path / "b")

    def test_list_without_images(self, tmp_path):
        self.put_lists(tmp_path)
        with pytest.raises(FileNotFoundError, match="but Train_GCC-training.tsv, whose images must be downloaded"):
            load("cc3m", tmp_path)


class TestCsv:
    def test_rows(self, table):
        pairs = load("csv", table)
        assert_table(pairs)
        assert list(pairs["id"]) == [str(n) for n in range(10)]
        assert pairs["caption"][:5] == ["a cat, sleeping", 'the "big" dog', "NA", "null", "3.0"]
        assert [grey(row) for row in pairs] == [20 * n for n in range(10)]
        assert set(pairs["label"]) == {None}

    def test_label_column(self, table):
        assert load("csv", table, label_column="kind")["label"][:4] == [None, "cat", None, "cat"]

    @pytest.mark.parametrize("separator", ["\t", ";", "|"])
    def test_separator_is_found(self, table, separator):
        lines = [("filepath", "the title", "n"), ("images/1.png", "red, green, and blue", "0")]
        put(table / "other.txt", "\ufeff" + "\n".join(separator.join(line) for line in lines))
        options = {"csv": "other.txt", "image_column": "filepath", "caption_column": "the title"}
        for given in (None, separator):
            row = load("csv", table, separator=given, **options)[0]
            assert (row["caption"], grey(row)) == ("red, green, and blue", 20)
        with pytest.raises(ValueError, match="other.txt has the columns filepath.*asked for filepath, the title"):
            load("csv", table, separator=",", **options)

    def test_absolute_paths_and_other_splits(self, table):
        put(table / "lists/holdout.csv", f"image,caption\n{table}/images/2.png,two\n../images/3.png,three\n")
        assert [grey(row) for row in load("csv", table, csv="lists/holdout.csv")] == [40, 60]
        with pytest.raises(ValueError, match=r"holdout.csv line 3: its path leaves the root: \.\./images/3.png"):
            load("csv", table / "lists", "holdout")

    def test_missing_columns_and_files(self, table):
        with pytest.raises(ValueError, match="train.csv has the columns image, caption, kind; asked for image, text"):
            load("csv", table, caption_column="text")
        with pytest.raises(FileNotFoundError, match="'csv' 'val' needs .*val.csv, not found"):
            load("csv", table, "val")
        put(table / "empty.csv", "")
        with pytest.raises(ValueError, match="empty.csv is empty; asked for the columns image, caption"):
            load("csv", table, csv="empty.csv")

    def test_a_blank_path_is_a_missing_image(self, table):
        put(table / "train.csv", "image,caption\nimages/1.png,one\n,two\n")
        with pytest.raises(FileNotFoundError, match="1 of 2 rows .* line 3: its image is missing: none is given"):
            load("csv", table)


class TestWebDataset:
    def test_rows(self, shards):
        pairs = load("webdataset", shards)
        assert_table(pairs)
        assert pairs["id"][:4] == ["00000/000000000", "00000/000000001", "00000/000000002", "00001/part/000000003"]
        assert list(pairs["caption"]) == ["one", "two", "three", "more 3", "more 4", "more 5"]
        assert [grey(row) for row in pairs] == pytest.approx([10, 50, 100, 150, 200, 250], abs=2)
        assert pairs["label"][:2] == ["1", None]

    def test_class_names(self, shards):
        assert load("webdataset", shards, class_names=["dog", "cat"])["label"][:2] == ["cat", None]
        with pytest.raises(ValueError, match="00000.tar sample 000000000: .*000000000.cls is '1'; given 1 class_names"):
            load("webdataset", shards, class_names=["dog"])

    def test_a_sample_copies_only_its_own_bytes(self, shards):
        pairs = load("webdataset", shards, size=2, seed=3)
        full = {row["id"]: grey(row) for row in load("webdataset", shards)}
        assert len(pairs) == pairs.data.num_rows == 2
        assert all(grey(row) == full[row["id"]] for row in pairs)

    def test_kept_in_our_cache_until_a_shard_changes(self, shards, monkeypatch):
        runs = []
        monkeypatch.setattr(tars, "captions_by_url", lambda tsv: runs.append(tsv) or {})
        put_tar(shards / "00001.tar", {"9.png": image_bytes(9)})  # no caption: asks the list, so that a scan shows
        for _ in range(2):
            with pytest.warns(UserWarning, match="1 of 4 rows .* sample 9: its caption is missing"):
                pairs = load("webdataset", shards, on_error="skip")
        assert len(runs) == 1
        assert all(file["filename"].startswith(os.environ["OTCLIB_CACHE"]) for file in pairs.cache_files)
        put_tar(shards / "00001.tar", {"9.png": image_bytes(9), "9.txt": "nine"})
        assert list(load("webdataset", shards)["caption"]) == ["one", "two", "three", "nine"]

    def test_where_shards_are_found(self, tmp_path):
        for name in ("val/0.tar", "set-train-0.tar", "set-test-0.tar", "deep/er/0.tar"):
            put_tar(tmp_path / name, {"0.png": image_bytes(0), "0.txt": name})
        for split in ("train", "val", "test"):
            assert split in load("webdataset", tmp_path, split)["caption"][0]
        assert load("webdataset", tmp_path, shards="*/*/*.tar")["id"][:] == ["deep/er/0/0"]
        with pytest.raises(FileNotFoundError, match="found no tars of the split 'dev' in .*, which holds 2 tars"):
            load("webdataset", tmp_path, "dev")
        with pytest.raises(FileNotFoundError, match=r"found no x-\*.tar in"):
            load("webdataset", tmp_path, shards="x-*.tar")

    def test_a_sample_without_its_image(self, shards):
        put_tar(shards / "00002.tar", {"7.txt": "seven"})
        with pytest.raises(FileNotFoundError, match="1 of 7 rows of .* 00002.tar sample 7: its image is missing"):
            load("webdataset", shards)
        with pytest.warns(UserWarning, match="1 of 7 rows"):
            assert len(load("webdataset", shards, on_error="skip")) == 6

    def test_a_broken_tar(self, shards):
        whole = (shards / "00001.tar").read_bytes()
        put(shards / "00001.tar", whole[:1400])  # ends in the caption of its first sample
        with pytest.raises(ValueError, match="the first is 00001.tar.*: its .* on_error"):
            load("webdataset", shards)
        with pytest.warns(UserWarning):
            pairs = load("webdataset", shards, on_error="skip")
        assert list(pairs["caption"]) == ["one", "two", "three"]
        broken = origin(pairs)["left_out"]["rows"][-1]
        assert broken["place"] == "00001.tar" and "is not whole and uncompressed" in broken["reason"]


class TestHub:
    def image_table(self, **columns):
        columns = {"image": [{"bytes": image_bytes(40 * n), "path": None} for n in range(4)]} | columns
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())

    def test_imagefolder(self, tmp_path):
        for n in range(3):
            put(tmp_path / f"train/{n}.png", image_bytes(40 * n))
        lines = ["file_name,caption", *(f"{n}.png,picture {n}" for n in range(3))]
        put(tmp_path / "train/metadata.csv", "\n".join(lines))
        pairs = load("hub", tmp_path)
        assert_table(pairs)
        assert [(grey(row), row["caption"]) for row in pairs] == [(40 * n, f"picture {n}") for n in range(3)]

    def test_parquet_with_other_columns(self, tmp_path):
        columns = {"sentences": [["first", "second"], ["one"], [], ["third"]], "y": [0, 1, -1, 1], "extra": [0] * 4}
        rows = self.image_table(**columns).rename_column("image", "img")
        rows.cast_column("y", datasets.ClassLabel(names=["cat", "dog"])).to_parquet(tmp_path / "set/validation.parquet")
        options = {"image_column": "img", "caption_column": "sentences", "label_column": "y"}
        for where in ({"root": tmp_path / "set"}, {"path": str(tmp_path / "set")}, {"root": tmp_path, "path": "set"}):
            with pytest.warns(UserWarning, match="1 of 4 rows .* validation row 2: its caption is missing"):
                pairs = otclib.data.load("hub", split="val", on_error="skip", **where, **options)
            assert_table(pairs)
            assert list(pairs["caption"]) == ["first", "one", "third"]
            assert list(pairs["label"]) == ["cat", "dog", "dog"]
            assert [grey(row) for row in pairs] == [0, 40, 120]

    def test_what_save_to_disk_wrote(self, tmp_path):
        table = self.image_table(caption=list("abcd"))
        table.save_to_disk(tmp_path / "one")
        datasets.DatasetDict(train=table, validation=table.select([2])).save_to_disk(tmp_path / "two")
        assert list(load("hub", tmp_path / "one")["caption"]) == list("abcd")
        assert list(load("hub", tmp_path / "two", "val")["caption"]) == ["c"]
        with pytest.raises(ValueError, match="has the splits train, not 'test'"):
            load("hub", tmp_path / "one", "test")

    def test_rows_without_an_image(self, tmp_path):
        values = [{"bytes": image_bytes(9), "path": None}, None, {"bytes": image_bytes(7), "path": None}]
        self.image_table(image=values, caption=list("abc")).to_parquet(tmp_path / "train.parquet")
        with pytest.raises(FileNotFoundError, match="1 of 3 rows of 'hub' .* train row 1: its image is missing"):
            load("hub", tmp_path)
        with pytest.warns(UserWarning, match="1 of 3 rows"):
            assert list(load("hub", tmp_path, on_error="skip")["caption"]) == ["a", "c"]

    def test_errors(self, tmp_path):
        self.image_table(caption=list("abcd"), n=[1, 2, 3, 4]).to_parquet(tmp_path / "train.parquet")
        with pytest.raises(ValueError, match="'hub' needs path, .* or root; got neither"):
            otclib.data.load("hub")
        with pytest.raises(ValueError, match="has the splits train, not 'test'"):
            load("hub", tmp_path, "test")
        with pytest.raises(ValueError, match="has the columns image, caption, n; asked for image, text"):
            load("hub", tmp_path, caption_column="text")
        with pytest.raises(ValueError, match="column 'n' of .* holds int64, asked for images"):
            load("hub", tmp_path, image_column="n")
        with pytest.raises(FileNotFoundError, match="nowhere, which is neither a folder nor a name on the hub"):
            load("hub", tmp_path, path="nowhere")
        assert len(load("hub", tmp_path, "train[:50%]")) == 2


# ---------------------------------------------------------------------------------------------------------------------
# what all formats share
# ---------------------------------------------------------------------------------------------------------------------


class TestSample:
    def test_is_seeded_and_keeps_the_order(self, table):
        draws = {seed: [int(i) for i in load("csv", table, size=5, seed=seed)["id"]] for seed in (0, 1, 2)}
        assert draws[0] == [int(i) for i in load("csv", table, size=5, seed=0)["id"]] == sorted(draws[0])
        assert len({tuple(draw) for draw in draws.values()}) > 1
        assert set(load("csv", table, size=2, seed=1)["id"]) <= set(map(str, draws[1]))

    def test_rows_stay_together(self, table):
        assert all(grey(row) == 20 * int(row["id"]) for row in load("csv", table, size=4, seed=7))

    def test_all_rows_and_too_many(self, table):
        assert len(load("csv", table, size=10)) == 10
        with pytest.raises(ValueError, match="'csv' 'train' has 10 image-caption pairs, asked for 11"):
            load("csv", table, size=11)
        with pytest.raises(ValueError, match="size must be at least 1 row, got 0"):
            load("csv", table, size=0)


class TestErrors:
    def test_unknown_name(self, tmp_path):
        with pytest.raises(ValueError, match="unknown dataset 'flickr': choose one of .*coco"):
            load("flickr", tmp_path)
        with pytest.raises(ValueError, match="unknown dataset 'scenes': choose one of coco"):
            readers.read("scenes", root=tmp_path)

    def test_every_name_has_a_reader(self):
        assert set(otclib.data.NAMES) - set(otclib.data.DRAWN) == set(readers.READERS) == {"hub", *LOCAL}

    @pytest.mark.parametrize("name", LOCAL)
    def test_root(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"'{name}' is read from a local copy: .* got root=None"):
            load(name, None)
        with pytest.raises(FileNotFoundError, match=f"'{name}' was to be read from root='.*gone', which"):
            load(name, tmp_path / "gone")
        with pytest.raises(FileNotFoundError, match=f"'{name}'"):
            load(name, tmp_path)

    @pytest.mark.parametrize("name", [*LOCAL, "hub"])
    def test_unknown_option(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"unknown option colour for '{name}': it takes .*on_error, check"):
            load(name, tmp_path, colour="red")

    @pytest.mark.parametrize("name", ["coco", "visual-genome", "cc3m"])
    def test_unknown_split(self, name, tmp_path):
        with pytest.raises(ValueError, match=f"'{name}' has the splits train, val, not 'test'"):
            load(name, tmp_path, "test")
