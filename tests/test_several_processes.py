"""Runs in several processes, and runs that are killed: both end as an undisturbed run in one process does."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import copies
import psutil
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from together import SHORT, run, start

from otclib import ranks
from otclib.experiments.workbook import kill
from otclib.ranks import ALONE
from otclib.runs import config_of, log_of


def test_alone_every_function_returns_what_it_was_given():
    x = torch.arange(5.0)
    assert (
        ALONE.own(x) is x and ALONE.gather(x) is x and ALONE.same("a") == "a" and ALONE.sum(2.5) == 2.5 and ALONE.first
    )


def test_a_launcher_that_started_too_few_is_refused(monkeypatch):
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="asked for several processes and started one"):
        ranks.join()


def test_gradient_accumulation_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(NotImplementedError, match="over 4 steps was asked for: the loss compares all pairs of a batch"):
        ranks.join()


def test_sharded_weights_are_refused(monkeypatch):
    asked = SimpleNamespace(gradient_accumulation_steps=1, distributed_type=DistributedType.FSDP)
    monkeypatch.setattr(ranks, "Accelerator", lambda **_: asked)
    with pytest.raises(NotImplementedError, match="FSDP was asked for: every process holds the whole model here"):
        ranks.join()


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, BatchNormAct2d])
def test_a_shared_batch_norm_of_one_process_is_the_batch_norm(kind):
    """Its output, its gradients and its running statistics, in training and in evaluation."""
    torch.manual_seed(0)
    own, shared = kind(5), kind(5)
    for module in (own, shared):
        torch.nn.init.uniform_(module.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
    shared.forward = ranks._Shared(shared, ALONE)
    x = torch.randn(6, 5, 4, 4) * 3 + 1
    weights, found = torch.randn(6, 5, 4, 4), []
    for module in (own, shared):
        seen = x.clone().requires_grad_()
        out = module(seen)
        (out * weights).sum().backward()
        module.eval()
        grads = (seen.grad, module.weight.grad, module.bias.grad)
        found.append((out.detach(), *grads, module.running_mean, module.running_var, module(x).detach()))
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(*found, strict=True))
    assert own.num_batches_tracked == shared.num_batches_tracked == 1


@pytest.mark.slow
@pytest.mark.parametrize("defense", SHORT)
def test_two_processes_are_one(defense, tmp_path):
    """The same losses to 1e-4, the same captions, and weights that differ by rounding."""
    one, two = (run(defense, tmp_path / str(n), n, lr=5e-4) for n in (1, 2))
    assert config_of(two)["processes"] == 2
    assert len(log_of(one)) == 4
    for a, b in zip(log_of(one), log_of(two)):
        losses = [key for key in a if key.startswith("loss/")]
        assert losses and [b[key] for key in losses] == pytest.approx([a[key] for key in losses], rel=0, abs=1e-4)
        assert a["clean_kept"] == b["clean_kept"] and a["poison_kept"] == b["poison_kept"]
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    apart = max(float((a[name] - b[name]).float().abs().max()) for name in a)
    assert 0 < apart < 5e-3, "different roundings of the same training"


@pytest.mark.slow
def test_three_processes_refuse_a_batch_of_32(tmp_path):
    process = start("clip", tmp_path / "run", 3)
    said, _ = process.communicate(timeout=120)
    assert process.returncode and "a batch of 32 pairs cannot be shared by 3 processes equally" in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_published_file_is_launched_killed_and_launched_again(tmp_path):
    """As a new user would, on a tiny copy of COCO and without a GPU, where accelerate alone would start one process."""
    root = copies.coco(tmp_path / "coco", ["umbrella", "desk", "palace", "clock", "dog", "red car"] * 8)
    file = Path(__file__).parent.parent / "configs" / "published" / "otcclip-coco.yaml"
    command = ["-m", "accelerate.commands.launch", "--num_processes", 2, "-m", "otclib.train", "--config", file]
    command += ["--root", root, "--out", tmp_path / "run", "--model", "small", "--epochs", 3, "--batch-size", 16]
    command += ["--attack", "badnets", "--options", '{"near_share": 1.0}', "--checkpoint-every", 1]
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    kill(process)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert config_of(tmp_path / "run")["processes"] == 2 and len(log_of(tmp_path / "run")) == 3
    assert done.stdout.count('"defense": "otcclip"') == 1, "one process prints the metrics"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_ten_times_a_run_ends_with_the_same_bits(processes, tmp_path):
    """At ten random moments, with a checkpoint after every second step and images decoded by a worker."""
    how = {"epochs": 10, "checkpoint_every": 2, "image_memory": 0, "workers": 1}
    straight = run("otcclip", tmp_path / "straight", processes, **how)
    moments, killed = random.Random(0), 0
    while killed < 10:
        process = start("otcclip", tmp_path / "killed", processes, pause=0.25, **how)
        first = next((line for line in process.stdout if line.startswith("done")), None)
        assert first is not None, f"it ended before it was killed {killed} times"
        time.sleep(moments.uniform(0, 1.2))
        assert process.poll() is None
        kill(process)
        killed += 1
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    again = run("otcclip", tmp_path / "killed", processes, **how)
    a, b = (load_file(folder / "model.safetensors") for folder in (straight, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    losses = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in log_of(of)] for of in (straight, again)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_no_process_outlives_a_launcher_that_was_killed(tmp_path):
    """`torchrun` gives each process a session of its own; they would wait for each other for an hour."""
    process = start("clip", tmp_path / "run", 2, epochs=50, pause=0.2)
    next(line for line in process.stdout if line.startswith("done"))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for each in alive:
        each.kill()
    assert not alive


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="only Linux can limit a running process")
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """No file may grow beyond a megabyte from the third step on: the checkpoint of the second one stays."""
    how = {"epochs": 4, "checkpoint_every": 1}
    process = start("clip", tmp_path / "run", pause=0.3, **how)
    for _ in range(2):
        next(line for line in process.stdout if line.startswith("done"))
    psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    said, _ = process.communicate(timeout=120)
    assert process.returncode and "could not be written" in said and "is kept" in said
    left = tmp_path / "run" / "checkpoint.pt"
    assert left.exists() and not left.with_name("checkpoint.pt.part").exists()
    assert torch.load(left, weights_only=True)["under_way"]["step"] in (1, 2)
    again, straight = run("clip", tmp_path / "run", **how), run("clip", tmp_path / "straight", **how)
    a, b = (load_file(folder / "model.safetensors") for folder in (again, straight))
    assert all(torch.equal(a[name], b[name]) for name in a)  # the header of a file may name its metadata in any order
