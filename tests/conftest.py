"""Small poisoned sets and one tiny trained run of each defence, shared by the tests."""

import os
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch

import otclib


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The tests draw their own scenes: nothing of the user's cache is read or written."""
    os.environ["OTCLIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))


@pytest.fixture(scope="session", autouse=True)
def in_fp32():
    """Runs of this process that leave their precision open are trained in fp32, so that they can be compared."""
    from otclib.training import loop, side_by_side

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, side_by_side):
            patch.setattr(module, "choose", lambda asked, model: ("fp32" if asked == "auto" else asked, None))
        yield


@pytest.fixture(scope="session")
def pairs(cache):
    return otclib.data.load("scenes", size=400, seed=5)


@pytest.fixture(scope="session")
def poisoned(pairs):
    planned = [otclib.attacks.load("targeted", targets=4, copies=3), otclib.attacks.load("badnets", rate=0.02)]
    return otclib.attacks.plant(pairs, planned, seed=5)


@contextmanager
def evaluated_on_little():
    """Runs are evaluated on 300 test and 200 val scenes and on 300 images of each probe: the same code on less."""
    scenes, probes = otclib.data.scenes, otclib.data.probes
    first = {name: lambda size, every=every: [of[:300] for of in every(size)] for name, every in probes.PROBES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "SPLITS", scenes.SPLITS | {"val": (200, 3), "test": (300, 1)})
        patch.setattr(probes, "PROBES", first)
        yield


@pytest.fixture
def little():
    with evaluated_on_little():
        yield


@pytest.fixture
def unevaluated(monkeypatch):
    """Runs are trained and not measured, which takes longer than training them here."""
    from otclib import evaluation, runs

    monkeypatch.setattr(evaluation, "evaluate", lambda run, **_: runs.write_json(run / "metrics.json", {}))


@pytest.fixture(scope="session")
def loaded():
    torch.manual_seed(0)
    return otclib.models.load("small")


@pytest.fixture
def small(loaded):
    """The small model, shared by all tests; it is set back to evaluation, because some tests train it."""
    loaded[0].eval()
    return loaded


@pytest.fixture(scope="session")
def runs(poisoned, tmp_path_factory):
    """{defence: finished run folder}, two epochs on 408 pairs; that of otcclip keeps the weights of every epoch."""
    table, manifest = poisoned
    options = {"clip": {}, "otcclip": {"warmup": 1, "pool": 100, "near_share": 0.2}}
    with evaluated_on_little():
        return {
            name: otclib.train(
                table,
                manifest=manifest,
                defense=name,
                out=tmp_path_factory.mktemp("runs") / name,
                seed=5,
                epochs=2,
                snapshots=name == "otcclip",
                **extra,
            )
            for name, extra in options.items()
        }
