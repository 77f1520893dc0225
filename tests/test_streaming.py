"""Images that are decoded when they are needed, tars that are read in place, and curves that can be watched."""

import io
import tarfile

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import otclib
from otclib import models, training
from otclib.data.images import Images
from otclib.data.readers.tarpart import address
from otclib.data.table import Resize
from otclib.ranks import ALONE, Ranks
from otclib.runs import log_of


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_the_same_in_memory_and_decoded_by_workers(pairs, workers):
    held, lazy = Images(pairs, Resize(48)), Images(pairs, Resize(48), memory=0, workers=workers)
    assert held.held is not None and lazy.held is None and len(lazy) == len(pairs)
    rows = torch.tensor([5, 3, 3, 120])
    assert torch.equal(held[rows], lazy[rows]) and lazy[rows].dtype == torch.uint8
    order = list(torch.randperm(len(pairs))[:70].split(16))
    state = torch.get_rng_state()
    for few, same in zip(held.batches(order), lazy.batches(order), strict=True):
        assert torch.equal(few, same)
    assert torch.equal(torch.get_rng_state(), state), "the workers' seeds are not drawn from the training's generator"


def test_images_beyond_the_memory_are_not_held(pairs):
    bytes_of_all = len(pairs) * 3 * 48 * 48
    assert Images(pairs, Resize(48), memory=bytes_of_all).held is not None
    assert Images(pairs, Resize(48), memory=bytes_of_all - 1).held is None
    with pytest.raises(ValueError, match="memory and workers must be at least 0, got -1 and None"):
        Images(pairs, Resize(48), memory=-1)


def test_a_run_is_the_same_with_images_in_memory_and_without(pairs, unevaluated, tmp_path):
    how = {"defense": "otcclip", "epochs": 2, "warmup": 1, "pool": 40, "batch_size": 32, "progress": False, "seed": 3}
    few = pairs.select(range(96))
    runs = [otclib.train(few, out=tmp_path / str(memory), image_memory=memory, **how) for memory in (0, 1 << 30)]
    lazy, held = (load_file(run / "model.safetensors") for run in runs)
    assert all(torch.equal(value, held[name]) for name, value in lazy.items())


def test_a_batch_of_few_holds_its_processes_part():
    """Of nine pairs that three processes share, the first six are 0 3, 1 4 and 2 5."""
    for rank, own in enumerate(([0, 3], [1, 4], [2, 5])):
        ranks = Ranks(rank, 3)
        batch = training.Batch(ranks.own(torch.arange(9)), *(torch.arange(9) for _ in range(4)), ranks)
        few = batch.few(6)
        assert len(few) == 6 and few.images.tolist() == own and few.row.tolist() == list(range(6))
        with pytest.raises(ValueError, match="7 pairs of a batch cannot be shared by 3 processes equally"):
            batch.few(7)
    assert len(training.Batch(*(torch.arange(10) for _ in range(5)), ALONE).few(99)) == 10


def test_an_address_opens_the_bytes_of_a_file_in_a_tar(tmp_path):
    tar = tmp_path / "a b.tar"
    with tarfile.open(tar, "w") as file:
        for name, content in (("x.txt", b"first"), ("y.txt", b"the second")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    with tarfile.open(tar) as file:
        places = {member.name: (member.offset_data, member.size) for member in file}
    with fsspec.open(address(tar, *places["y.txt"]), "rb") as found:
        assert found.read() == b"the second"
    with pytest.raises(FileNotFoundError, match="was it changed?"), fsspec.open(address(tar, 10**6, 5), "rb"):
        pass
    with pytest.raises(ValueError, match="it reads OFFSET-SIZE/path/of.tar"), fsspec.open(f"tarpart://5{tar}", "rb"):
        pass


def test_tensorboard_shows_the_losses_and_every_epoch(pairs, unevaluated, tmp_path):
    how = {"defense": "clip", "epochs": 2, "batch_size": 16, "progress": False}
    run = otclib.train(pairs.select(range(320)), out=tmp_path / "run", **how)
    curves = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = set(curves.Tags()["scalars"])
    assert {"loss/contrastive", "lr", "zero_shot_top1", "seconds"} <= tags
    assert [event.step for event in curves.Scalars("lr")] == [10, 20, 30, 40]
    epochs = curves.Scalars("zero_shot_top1")
    assert [event.step for event in epochs] == [20, 40]
    assert epochs[1].value == pytest.approx(log_of(run)[1]["zero_shot_top1"])


def test_unknown_and_missing_trackers_are_refused(pairs, tmp_path, unevaluated):
    with pytest.raises(ValueError, match="tracker is one of tensorboard, wandb, mlflow or none, got 'comet'"):
        otclib.train(pairs, out=tmp_path / "run", tracker="comet")
    with pytest.raises(ValueError, match="tracker 'wandb' was asked for, and its package is not installed"):
        otclib.train(pairs, out=tmp_path / "run", tracker="wandb")
    assert not (tmp_path / "run").exists()
    few = {"epochs": 1, "batch_size": 32, "progress": False, "defense": "clip"}
    run = otclib.train(pairs.select(range(64)), out=tmp_path / "run", tracker="none", **few)
    assert not (run / "tensorboard").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["RN50", "ViT-B-32"])
def test_otcclip_trains_published_towers_on_224_pixels(model, unevaluated, tmp_path):
    """A warm-up step and, after a matching, another one: 8 pairs a batch. Both towers learn."""
    pairs = otclib.data.load("scenes", size=8, seed=2, image_size=224)
    how = {"epochs": 2, "warmup": 1, "pool": 8, "near_share": 0.5, "batch_size": 8, "precision": "fp32", "seed": 1}
    how |= {"optimizer": "adamw", "lr": 1e-4, "watch": pairs.select(range(1)), "progress": False}
    run = otclib.train(pairs, model=model, defense="otcclip", out=tmp_path / "run", **how)
    lines = log_of(run)
    assert len(lines) == 2 and all(0 < value < 20 for line in lines for key, value in line.items() if "loss" in key)
    assert set(key for key in lines[1] if "loss" in key) == {"loss/contrastive", "loss/inter", "loss/intra"}
    torch.manual_seed(1)
    before = dict(models.load(model, random=True)[0].named_parameters())
    after = models.load(run / "model.safetensors")[0]
    still = [name for name, p in after.named_parameters() if torch.equal(p, before[name])]
    assert all("bias" in name or name in ("positional_embedding",) for name in still), still
