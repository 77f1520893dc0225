"""Train a defence on a tiny set, alone or (under torchrun) in several processes: ``together.py DEFENCE OUT JSON``.

The JSON holds further arguments of ``otclib.train``, and ``pause``, the seconds to rest after every step. A line is
printed after every step. ``start`` and ``run`` start this file, so that tests can compare, kill and resume runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHORT = {  # so that every phase of a defence is reached in a few epochs of a few steps
    "clip": {},
    "otcclip": {"warmup": 1, "every": 1, "pool": 64, "near_share": 0.2},
    "otcclip-plus": {"warmup": 1, "ready": 1.0, "pool": 64},
    "roclip": {"every": 2, "first": 1, "pool": 0.5},
    "safeclip": {"warmup": 1, "slow_epochs": 1, "min_safe": 0.4, "bank": 0.5},
    "dao": {"detect": 2, "k": 4, "references": 48},
    "cleanclip": {},
    "cleanclip-supervised": {},
    "par": {},
}


def start(defense: str, out: Path, processes: int = 1, **more) -> subprocess.Popen:
    """Start the training in one process or several, on one core each, in a group that can be killed at once."""
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*python, __file__, defense, str(out), json.dumps(more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def run(defense: str, out: Path, processes: int = 1, **more) -> Path:
    """Train to the end; return the run folder."""
    process = start(defense, out, processes, **more)
    try:
        said, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, said[-4000:]
    return out


def main(defense: str, out: str, more: str) -> None:
    import torch

    import otclib
    from otclib import evaluation, runs

    torch.set_num_threads(1)
    evaluation.evaluate = lambda run, **_: runs.write_json(run / "metrics.json", {})
    pairs = otclib.data.load("scenes", size=96, seed=10)
    planned = [otclib.attacks.load("targeted", targets=2, copies=4), otclib.attacks.load("badnets", rate=0.05)]
    poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=10)
    how = {"seed": 10, "epochs": 4, "batch_size": 32, "precision": "fp32", "progress": False, "tracker": "none"}
    if otclib.defenses.repairs(defense):
        from otclib import models

        torch.manual_seed(10)
        weights = Path(out).parent / f"{Path(out).name}-{os.environ.get('RANK', 0)}.safetensors"
        models.save(models.load("small")[0], weights, "small")
        how["model"] = weights
        poisoned = pairs.filter(lambda label: label is not None, input_columns="label")
    how["watch"] = pairs.select([k for k, label in enumerate(pairs["label"]) if label is not None][:8])
    given = json.loads(more)
    pause = given.pop("pause", 0)

    def tick(done: float) -> None:
        print(f"done {done:.3f}", flush=True)
        time.sleep(pause)

    otclib.train(poisoned, manifest=manifest, defense=defense, out=out, tick=tick, **how | SHORT[defense] | given)


if __name__ == "__main__":
    main(*sys.argv[1:])
