"""The loss of 40 steps of a defence, on stdout or (without arguments) of each into this folder.

    python tests/curves/make.py clip         # prints them
    python tests/curves/make.py              # writes one file for each: only when the method itself changes

Every epoch is one step, so the run's own log has them all. fp32 on one thread; instruction sets above AVX2 are not
used, so that processors agree.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from otclib.runs import log_of

FOLDER = Path(__file__).parent
SAME_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2",
}
STEPS = 40


def losses(defense: str) -> list[float]:
    """The loss of every step. Call it in a process that began with ``SAME_EVERYWHERE``."""
    import torch

    import otclib
    from otclib import evaluation, runs

    torch.set_num_threads(1)
    evaluation.evaluate = lambda run, **_: runs.write_json(run / "metrics.json", {})
    pairs = otclib.data.load("scenes", size=120, seed=10)
    planned = [otclib.attacks.load("targeted", targets=2, copies=3), otclib.attacks.load("badnets", rate=0.02)]
    poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=10)
    watch = pairs.select([k for k, label in enumerate(pairs["label"]) if label is not None][:2])
    options = {
        "clip": {},
        "otcclip": {"warmup": 10, "pool": 64, "near_share": 0.2},
        "otcclip-plus": {"warmup": 10, "pool": 64},
    }[defense]
    with tempfile.TemporaryDirectory() as folder:
        run = otclib.train(
            poisoned,
            manifest=manifest,
            defense=defense,
            out=Path(folder) / defense,
            seed=10,
            epochs=STEPS,
            batch_size=64,
            precision="fp32",
            watch=watch,
            progress=False,
            **options,
        )
        return [sum(v for k, v in line.items() if k.startswith("loss/")) for line in log_of(run)]


def main(names: list[str]) -> None:
    if any(os.environ.get(key) != value for key, value in SAME_EVERYWHERE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SAME_EVERYWHERE})
    for name in names:
        print(json.dumps(losses(name)))
    for name in ("clip", "otcclip", "otcclip-plus") if not names else ():
        (FOLDER / f"{name}.json").write_text(json.dumps(losses(name), indent=0) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
