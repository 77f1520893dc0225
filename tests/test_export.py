"""Poisoned sets for other codes: open_clip reads them unchanged, and no clean image is copied."""

import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import copies
import numpy as np
import pandas as pd
import pytest
import webdataset
from datasets import Dataset, load_from_disk
from datasets import Image as ImageColumn
from open_clip_train.data import CsvDataset, get_dataset_fn
from open_clip_train.params import parse_args
from PIL import Image
from typer.testing import CliRunner

import otclib
from otclib import attacks, shard
from otclib.attacks import exporting
from otclib.cli import app
from otclib.data.readers.files import PAIRS

WORDS = [("umbrella", "star", "moon")[k % 3] for k in range(30)]
HERE = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(sys.path),
}


def planted_in(pairs, rate=0.1, seed=0):
    return attacks.plant(pairs, [attacks.load("badnets", rate=rate)], seed=seed)


def copy_of(kind, root):
    """A tiny set whose images are files, members of tars, or rows of an Arrow file."""
    if kind == "scenes":
        return otclib.data.load("scenes", size=40, seed=7)
    getattr(copies, kind)(root, WORDS)
    return otclib.data.load(kind, root=root)


def bytes_of(pairs):
    """{id: the bytes of its image}"""
    stored = pairs.cast_column("image", ImageColumn(decode=False))
    return {id: exporting._bytes(image) for id, image in zip(stored["id"], stored["image"])}


def streamed(folder, name):
    to = io.BytesIO()
    shard.stream(folder, name, to)
    return to.getvalue()


def lines_of(folder):
    return [
        json.loads(line)
        for file in sorted((folder / "shards").iterdir())
        for line in file.read_text("utf-8").splitlines()
    ]


def test_csv_names_clean_images_where_they_lie(tmp_path):
    poisoned, manifest = planted_in(copy_of("coco", tmp_path / "coco"))
    done = attacks.export(poisoned, manifest, tmp_path / "out", form="csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.parquet", "planted", "train.csv"]
    assert (done.pairs, done.planted, done.copied) == (30, 3, 0)
    read = pd.read_csv(tmp_path / "out" / "train.csv", sep="\t")
    assert list(read.columns) == ["filepath", "title"] and read["title"].tolist() == poisoned["caption"][:]
    planted = dict(zip(manifest["id"], manifest.cast_column("image", ImageColumn(decode=False))["image"]))
    for id, place in zip(poisoned["id"], read["filepath"]):
        if id in planted:
            assert Path(place) == tmp_path / "out" / "planted" / f"{id}.png"
            assert Path(place).read_bytes() == planted[id]["bytes"]
        else:
            assert Path(place).parent == tmp_path / "coco" / "train2017"
    again = Dataset.from_parquet(str(tmp_path / "out" / "manifest.parquet"))
    assert again["id"] == manifest["id"] and str(done).endswith(
        f"open_clip_train.main --train-data {tmp_path}/out/train.csv"
    )


@pytest.mark.parametrize("kind", ["cc3m", "scenes"])
def test_csv_writes_images_that_are_no_files(kind, tmp_path):
    pairs = copy_of(kind, tmp_path / "set")
    poisoned, manifest = planted_in(pairs)
    done = attacks.export(poisoned, manifest, tmp_path / "out", form="csv")
    assert done.copied == len(pairs) - len(manifest)
    assert f"{done.copied} clean images have no file of their own and were copied to {tmp_path}/out/images" in str(done)
    read = pd.read_csv(tmp_path / "out" / "train.csv", sep="\t")
    expected = bytes_of(poisoned)
    for id, place in zip(poisoned["id"], read["filepath"]):
        assert Path(place).read_bytes() == expected[id]
    assert sorted(Path(p).parent.name for p in read["filepath"]) == ["images"] * done.copied + ["planted"] * len(
        manifest
    )


def test_open_clip_reads_any_caption_from_the_csv(tmp_path):
    captions = [
        "a\ttab",
        'a "quote", a comma',
        "two\nlines\r\nand more",
        "None",
        "NA",
        "nan",
        "null",
        "1.50",
        "#1",
        "é 字",
        "a red umbrella",
    ]
    rows = {"id": [f"a/{k} x" for k in range(12)], "caption": [*captions, "an umbrella"], "label": [None] * 12}
    files = [tmp_path / f"{k} ü.png" for k in range(12)]
    for k, file in enumerate(files):
        file.write_bytes(copies.image_bytes(k))
    table = Dataset.from_dict(rows | {"image": list(map(str, files))}).cast_column("image", ImageColumn())
    table = table.cast(PAIRS)
    poisoned, manifest = attacks.load("badnets", rate=0.1).poison(table)
    attacks.export(poisoned, manifest, tmp_path / "out", form="csv")
    seen = []
    read = CsvDataset(
        str(tmp_path / "out" / "train.csv"),
        np.array,
        "filepath",
        "title",
        "\t",
        lambda texts: seen.append(texts[0]) or [0],
    )
    images = [read[k][0] for k in range(12)]
    assert [text.split() for text in seen] == [caption.split() for caption in poisoned["caption"]]
    clean = [k for k, id in enumerate(poisoned["id"]) if id not in set(manifest["id"])]
    assert [int(images[k][0, 0, 0]) for k in clean] == [int(poisoned["id"][k].split("/")[1].split()[0]) for k in clean]


@pytest.mark.parametrize("kind", ["coco", "cc3m", "scenes"])
def test_shards_copy_no_clean_image_and_stream_the_original_bytes(kind, tmp_path):
    poisoned, manifest = planted_in(copy_of(kind, tmp_path / "set"))
    done = attacks.export(poisoned, manifest, tmp_path / "out", form="webdataset", shards=3, seed=4)
    assert done.copied == 0
    written = {path.parent.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"out", "shards", "planted"} and len(list((tmp_path / "out/planted").iterdir())) == len(manifest)
    lines, expected, captions = (
        lines_of(tmp_path / "out"),
        bytes_of(poisoned),
        dict(zip(poisoned["id"], poisoned["caption"])),
    )
    assert [line["key"] for line in lines] == [f"{k:09d}" for k in range(len(poisoned))]
    assert sorted(line["id"] for line in lines) == sorted(poisoned["id"])
    of = {line["key"]: line["id"] for line in lines}
    names, found = [], {}
    for name in ("00000", "00001", "00002.tar"):
        with tarfile.open(fileobj=io.BytesIO(streamed(tmp_path / "out", name))) as tar:
            for member in tar:
                names.append(member.name)
                found[tuple(member.name.split("."))] = tar.extractfile(member).read()
                assert member.mtime == 0 and member.uid == 0, "the same bytes on every machine"
    assert len(found) == 2 * len(poisoned)
    for (key, ending), content in found.items():
        if ending == "txt":
            assert content.decode() == captions[of[key]]
        else:
            assert content == expected[of[key]]
            assert ending == ("jpg" if kind != "scenes" and of[key] not in set(manifest["id"]) else "png")
    assert [n.split(".")[0] for n in names[::2]] == sorted(of), "keys count the samples and say nothing of the pairs"


def test_planted_pairs_lie_anywhere_in_the_shards(tmp_path):
    poisoned, manifest = planted_in(otclib.data.load("scenes", size=200, seed=7), rate=0.2)
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        attacks.export(poisoned, manifest, tmp_path / name, form="webdataset", seed=seed)
        orders.append([line["id"] for line in lines_of(tmp_path / name)])
    assert len(list((tmp_path / "a" / "shards").iterdir())) == 8
    assert orders[0] == orders[1] != orders[2]
    at = [k for k, id in enumerate(orders[0]) if id in set(manifest["id"])]
    assert 70 < np.mean(at) < 130, "they are the last rows of the table"


def test_our_reader_and_webdataset_read_the_stream(tmp_path):
    poisoned, manifest = planted_in(copy_of("cc3m", tmp_path / "set"))
    out = tmp_path / "out put"
    attacks.export(poisoned, manifest, out, form="webdataset", shards=2)
    (tmp_path / "tars").mkdir()
    for name in ("00000", "00001"):
        (tmp_path / "tars" / f"{name}.tar").write_bytes(streamed(out, name))
    ours = otclib.data.load("webdataset", root=tmp_path / "tars")
    assert ours["caption"][:] == [line["caption"] for line in lines_of(out)]
    pixels = dict(zip(poisoned["id"], poisoned["image"]))
    for line, image in zip(lines_of(out), ours["image"]):
        assert np.array_equal(image.convert("RGB"), pixels[line["id"]].convert("RGB"))
    url = f"pipe:{shlex.quote(sys.executable)} -m otclib.cli shard {shlex.quote(str(out))} {{00000..00001}}"
    theirs = webdataset.WebDataset(url, shardshuffle=False).decode("pilrgb").to_tuple("jpg;png", "txt")
    assert [caption for _, caption in theirs] == ours["caption"][:]


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    poisoned, manifest = planted_in(otclib.data.load("scenes", size=400, seed=5))
    attacks.export(poisoned, manifest, tmp_path / "out", form="webdataset", shards=1)
    command = [sys.executable, "-m", "otclib.cli", "shard", str(tmp_path / "out"), "00000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout.read(1024)
        started.stdout.close()
        assert started.stderr.read() == b"" and started.wait(60) == 141, "webdataset takes 141 for an end, not an error"


def test_the_stream_starts_without_torch():
    names = "import sys, otclib.cli, otclib.shard; print(sorted({'torch', 'datasets', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_formats_that_shards_cannot_hold_become_png(tmp_path):
    rows = {"id": ["a", "b"], "caption": ["an umbrella", "a star"], "label": [None, None]}
    files = [tmp_path / "a.bmp", tmp_path / "b.gif"]
    for k, file in enumerate(files):
        file.write_bytes(copies.image_bytes(40 + k, file.suffix[1:]))
    table = Dataset.from_dict(rows | {"image": list(map(str, files))}).cast_column("image", ImageColumn())
    nothing = planted_in(otclib.data.load("scenes", size=40, seed=7))[1].select([])
    attacks.export(table, nothing, tmp_path / "out", form="webdataset", shards=1)
    with tarfile.open(fileobj=io.BytesIO(streamed(tmp_path / "out", "00000"))) as tar:
        images = {name: np.array(Image.open(tar.extractfile(name))) for name in tar.getnames() if name.endswith("png")}
    assert sorted(int(image[0, 0, 0]) for image in images.values()) == [40, 41]


def test_images_in_memory_alone_are_written(tmp_path):
    scenes = otclib.data.load("scenes", size=40, seed=7)
    stored = scenes.cast_column("image", ImageColumn(decode=False))
    table = Dataset.from_list(list(stored), features=scenes.features)
    poisoned, manifest = planted_in(table)
    done = attacks.export(poisoned, manifest, tmp_path / "out", form="webdataset")
    assert done.copied == 36 and len(list((tmp_path / "out" / "images").iterdir())) == 36


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    poisoned, manifest = planted_in(otclib.data.load("scenes", size=40, seed=7))
    (tmp_path / "there").mkdir()
    for options, said in (
        ({"out": "there"}, "out must be a new folder, .*there exists already"),
        ({"form": "tar"}, "unknown format 'tar': choose one of datasets, csv, webdataset"),
        ({"form": "csv", "shards": 2}, "shards is at least 1 and for the format webdataset, got 2 for 'csv'"),
        ({"form": "webdataset", "shards": 41}, "40 pairs fill at most as many shards, got shards=41"),
        ({"pairs": poisoned.select(range(10))}, "4 of 4 planted pairs are not in the set, such as 'train-7-"),
    ):
        given = {"pairs": poisoned, "out": "new"} | options
        with pytest.raises(ValueError, match=said):
            attacks.export(given.pop("pairs"), manifest, tmp_path / given.pop("out"), **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    lost = Dataset.from_dict(
        {"id": ["a"], "caption": ["a star"], "label": ["star"], "image": [str(tmp_path / "no.png")]}
    )
    lost = lost.cast_column("image", ImageColumn())
    attacks.export(lost, manifest.select([]), tmp_path / "lost", form="webdataset")
    with pytest.raises(FileNotFoundError, match="no.png"):
        streamed(tmp_path / "lost", "00000")
    with pytest.raises(FileNotFoundError, match="lost has the shards 00000 to 00000: asked for '7'"):
        streamed(tmp_path / "lost", "7")
    with pytest.raises(FileNotFoundError, match="there is no set of shards"):
        streamed(tmp_path / "there", "00000")


def test_the_command_writes_every_form(tmp_path):
    for form in ("datasets", "csv", "webdataset"):
        words = ["poison", "--out", tmp_path / form, "--size", 60, "--attack", "badnets", "--format", form]
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0 and done.stdout.startswith("60 pairs, 1 of them planted (1.67 %): "), done.stderr
    assert len(load_from_disk(str(tmp_path / "datasets" / "pairs"))) == 60
    assert done.stdout.endswith(
        f"--train-num-samples 60 --train-data 'pipe:otclib shard {tmp_path}/webdataset {{00000..00007}}'\n"
    )
    done = CliRunner().invoke(app, ["shard", str(tmp_path / "webdataset"), "00003"])
    assert done.exit_code == 0 and done.stdout_bytes == streamed(tmp_path / "webdataset", "00003")
    done = CliRunner().invoke(app, ["shard", str(tmp_path / "csv"), "00003"])
    assert (
        done.exit_code == 2 and done.stderr == f"otclib shard: {tmp_path}/csv is no set of shards: asked for '00003'\n"
    )
    done = CliRunner().invoke(app, ["poison", "--out", str(tmp_path / "csv"), "--format", "csv"])
    assert done.exit_code == 2 and "exists already" in done.stderr


def test_open_clip_reads_every_sample_once(tmp_path, monkeypatch):
    """Its own pipeline, which a training iterates; one process of the command for every shard."""
    poisoned, manifest = planted_in(otclib.data.load("scenes", size=64, seed=7))
    done = attacks.export(poisoned, manifest, tmp_path / "out", form="webdataset")
    monkeypatch.setenv("PATH", HERE["PATH"])
    monkeypatch.setenv("PYTHONPATH", HERE["PYTHONPATH"])
    args = parse_args([*done.command[3:], "--batch-size", "4", "--workers", "2"])
    args.world_size, args.distributed = 1, False
    seen = []
    read = get_dataset_fn(args.train_data, args.dataset_type)(
        args, lambda image: np.array(image).mean(), True, tokenizer=lambda text: [text]
    )
    for _, texts in read.dataloader:
        seen += texts
    assert sorted(seen) == sorted(poisoned["caption"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "webdataset"])
def test_open_clip_trains_on_a_poisoned_set_and_its_checkpoint_is_judged(form, tmp_path):
    """The command that is printed, and no more than open_clip's own options behind it."""
    words = ["poison", "--out", "out", "--size", 48, "--attack", "badnets", "--format", form]
    printed = subprocess.run(
        ["otclib", *map(str, words)], cwd=tmp_path, env=HERE, capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    assert printed.startswith("python -m open_clip_train.main ")
    more = "--model ViT-S-32-alt --batch-size 16 --workers 2 --epochs 1 --precision fp32 --logs logs --name tiny"
    done = subprocess.run(f"{printed} {more}", shell=True, cwd=tmp_path, env=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Ignoring" not in done.stderr, "webdataset skips what it cannot read"
    checkpoint = tmp_path / "logs" / "tiny" / "checkpoints" / "epoch_1.pt"
    test = otclib.data.load("scenes", split="test", size=20)
    with pytest.raises(ValueError, match="have the shapes of ViT-S-32-alt$"):
        otclib.evaluate(checkpoint, test=test)
    found = otclib.evaluate(checkpoint, model="ViT-S-32-alt", test=test, attack=tmp_path / "out" / "manifest.parquet")
    assert 0 <= found["attack_success_rate"] <= 1 and 0 <= found["triggered_top1"] <= 1
