# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. From the laptop to the cluster
#
# > One run, then the same run in several processes, then a sweep: only parameters change, and no code.
#
# The data here is small, so that everything below runs on two cores. The commands are those that train on a million
# pairs. The guide *Real data, many runs, clusters* (`book/large_runs.md`) lists the options.

# %% tags=["parameters"]
size = 800  # pairs of drawn scenes
defense = "clip"  # or roclip, safeclip, otcclip-plus; see otclib.defenses
epochs = 4  # far too few to learn from
batch_size = 32  # of all processes together
lr = 0.0005  # small, so that the rounding of section 2 grows slowly; the defence's own is eight times as large
processes = 2  # that share a batch; batch_size must be a multiple
seed = 0  # data, attack and training
out = "../runs/cluster"  # configurations and runs land here; a finished run is not trained again
fast = False  # True: fewer pairs and epochs
INTERACTIVE = True  # False under papermill; this chapter has no widgets

# %%
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import otclib
import pandas as pd
import torch
import yaml
from otclib import figures
from otclib.experiments import config, workbook
from otclib.experiments.grid import Grid
from otclib.runs import log_of
from safetensors.torch import load_file

if fast:
    out, size, epochs = f"{out}-fast", 320, 3
out, repository = Path(out), Path(otclib.__file__).parents[1]
out.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## 1. One run from a file
#
# A YAML file holds the options of `otclib train`, with underscores in place of dashes. `precision` is fixed here,
# because `auto` measures which precision is faster and may choose differently on another machine.

# %%
one = {
    "dataset": "scenes",
    "size": size,
    "attack": [{"name": "targeted", "targets": 4, "copies": 8}, {"name": "badnets", "rate": 0.02}],
    "defense": defense,
    "epochs": epochs,
    "batch_size": batch_size,
    "lr": lr,
    "precision": "fp32",
    "seed": seed,
    "out": str(out / "one"),
}
file = out / "one.yaml"
file.write_text(yaml.safe_dump(one, sort_keys=False))
print(file.read_text())

# %% [markdown]
# In a terminal the command is `otclib train --config one.yaml`. From a notebook we start it in a process of its own,
# with one core. What it prints is shown up to the metrics.

# %%
said = workbook.finish(workbook.start(["--config", file]))
print(said[: said.index("{")] or "it was finished before")

# %% [markdown]
# The run folder is all that a run leaves. It can be copied from a cluster to a laptop and opened there.

# %%
holds = {
    "config.json": "the options, the code and the machine",
    "manifest.parquet": "every planted pair",
    "log.jsonl": "one line for each epoch",
    "tensorboard": "curves, a value every ten steps",
    "pairs.parquet": "of each pair its distance, and its last caption",
    "model.safetensors": "the weights",
    "metrics.json": "the results; a run that has them is finished",
}
sizes = {name: sum(f.stat().st_size for f in [out / "one" / name, *(out / "one" / name).glob("*")] if f.is_file()) for name in holds}
pd.DataFrame({"kB": [f"{n / 1000:,.0f}" for n in sizes.values()], "holds": holds.values()}, index=list(holds))

# %% [markdown]
# ## 2. The same file in several processes
#
# Only the launcher changes. `otclib.train` is the module behind `otclib train`.
#
# | machine | command |
# |---|---|
# | one process | `otclib train --config one.yaml` |
# | two processes on a processor | `torchrun --standalone --nproc_per_node 2 -m otclib.train --config one.yaml` |
# | the same by accelerate | `accelerate launch --num_processes 2 -m otclib.train --config one.yaml` |
# | eight GPUs | `accelerate launch --num_processes 8 -m otclib.train --config one.yaml` |
#
# On a machine without several GPUs accelerate starts a single process, whatever was asked for. `otclib.train` then
# starts as many as you asked for.

# %%
said = workbook.finish(workbook.start(["--config", file, "--out", out / "several"], processes))
print(said[: said.index("{")] or "it was finished before")

# %% [markdown]
# Both runs compute the same loss on the same batches, and the curves lie over each other. They add the same numbers in
# another order, so the loss of the first step differs by about one rounding of fp32, the dashed line. Training amplifies
# this from step to step. The first point that is drawn is that of step 10.

# %%
curves = {"one process": workbook.curve(out / "one"), f"{processes} processes": workbook.curve(out / "several")}
fig = figures.two_curves(curves, "contrastive loss")

# %% [markdown]
# Every process holds the whole table and draws the same random numbers, so all of them know the whole batch. Each
# encodes its part, and the features are gathered with their gradients, so that every process computes the loss of the
# whole batch. Batch norm takes its mean and variance over all processes, and the gradients are averaged before a step.
#
# ```text
#                        ┌─ process 0:  encodes pairs 0 2 4 6 ─┐
#  batch 0 1 2 … 7  ─────┤                                     ├── gather ──  features 0 1 2 … 7  ──  one loss, 8 × 8
#  the same in both      └─ process 1:  encodes pairs 1 3 5 7 ─┘   with gradients                     the same in both
# ```
#
# The negatives of a pair are therefore all pairs of the batch, and a defence that compares pairs sees all of them.
#
# ## 3. Killed in the middle, and resumed
#
# Machines fail, and jobs run out of time. `checkpoint_every` says after how many steps a run is saved, besides the end
# of every epoch. The default is 1,000 steps, and here it is 5. We kill the run as soon as it has saved something. SIGKILL
# leaves it no time to react. Two processes fit on two cores, so the run of section 4 is started beside it.

# %%
decoding = workbook.start(["--config", file, "--out", out / "decoded", "--image-memory", "0", "--workers", "2"])
again = ["--config", file, "--out", out / "killed", "--checkpoint-every", "5"]
checkpoint = out / "killed" / "checkpoint.pt"
if not (out / "killed" / "metrics.json").exists():
    process, patience = workbook.start(again), time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.05)
    workbook.kill(process)
    state = torch.load(checkpoint, weights_only=True)
    print(f"killed; saved in epoch {state['epoch'] + 1}, after step {(state['under_way'] or {}).get('step', 0)} of it")

# %% [markdown]
# The same command goes on from there. The checkpoint holds weights, optimisers, random numbers, the order of the epoch
# and the captions of all images, so not a bit of the result differs from the undisturbed run.

# %%
said = workbook.finish(workbook.start(again))
print(said[: said.index("{")] or "it was finished before")


def differing(a, b):
    """Names of the weights of two runs that are not equal bit for bit."""
    first, second = (load_file(out / run / "model.safetensors") for run in (a, b))
    return [name for name in first if not torch.equal(first[name], second[name])]


print(f"weights that differ: {differing('one', 'killed')}")

# %% [markdown]
# ## 4. Images that do not fit into memory
#
# Images are decoded once and kept if their pixels fit into `image_memory`, which is 1 GiB by default. Otherwise
# `workers` decode them anew in every epoch, ahead of the training. With `--image-memory 0` nothing fits, and the run
# that was started above decoded its images in two workers.

# %%
said = workbook.finish(decoding)
losses = [[line["loss/contrastive"] for line in log_of(out / run)] for run in ("one", "decoded")]
for epoch, (kept, decoded) in enumerate(zip(*losses), 1):
    print(f"epoch {epoch}: loss {kept:.6f} with images in memory, {decoded:.6f} decoded; equal: {kept == decoded}")
print(f"weights that differ: {differing('one', 'decoded')}")

# %% [markdown]
# An image takes 3 × side × side bytes, one for each colour of each pixel. This is what a number of images would take in
# *every* process, and so where the default decodes instead:

# %%
GIB = 2**30
needs = {(n, side): n * 3 * side**2 / GIB for n in (10_000, 118_287, 1_000_000) for side in (64, 224)}
pd.DataFrame(
    [
        {"images": f"{n:,}", "side": side, "GiB": f"{gib:,.1f}", "under the default of 1 GiB": "kept" if gib <= 1 else "decoded"}
        for (n, side), gib in needs.items()
    ]
).set_index(["images", "side"])

# %% [markdown]
# ## 5. A sweep
#
# A sweep is a grid: data sets × attacks × systems × seeds. What follows each name are the keys of the file above. The
# keys that all runs share stand under `parameters`.

# %%
sweep = {
    "out": str(out / "sweep"),
    "datasets": {"scenes": {"dataset": "scenes", "size": size}},
    "attacks": {"both": one["attack"]},
    "systems": {"clip": {"defense": "clip"}, "otcclip": {"defense": "otcclip"}},
    "seeds": [0, 1, 2],
    "parameters": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "precision": "fp32", "processes": 1},
}
(out / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
print((out / "sweep.yaml").read_text())

# %% [markdown]
# Each cell of the grid is a run. Cells that need no other one run at the same time, as many as the machine or the
# cluster has room for.


# %%
def planned(grid):
    """One row for each cell: its folder, its processes (each has a GPU where there are GPUs), and what it waits for."""
    rows = [
        {
            "system": cell.system,
            "seed": cell.seed,
            "run folder": f"{grid.folder(cell).relative_to(grid.out)}",
            "processes": grid.processes,
            "waits for": ", ".join(map(str, grid.needs(cell))) or "nothing",
        }
        for cell in grid.cells
    ]
    return pd.DataFrame(rows).set_index(["system", "seed"]).sort_index()


plan = planned(Grid(sweep))
print(f"{len(plan)} runs")
plan

# %% [markdown]
# Snakemake runs the grid. `--dry-run` says what it would do. A finished run is not trained again, so the same command
# goes on with an interrupted sweep.
#
# | where | command |
# |---|---|
# | laptop | `snakemake --snakefile workflow/Snakefile --cores 8 --configfile sweep.yaml` |
# | SLURM | `snakemake --snakefile workflow/Snakefile --profile workflow/profiles/slurm --configfile sweep.yaml` |
# | Kubernetes | `snakemake --snakefile workflow/Snakefile --profile workflow/profiles/kubernetes --configfile sweep.yaml` |
#
# Set your account, partition, container image or volume in the profile first. Our tests plan runs with both profiles.
# Nobody has run them on a cluster.

# %%
if find_spec("snakemake"):
    snakefile = repository / "workflow" / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--snakefile", str(snakefile.resolve())]
    done = subprocess.run(
        [*command, "--configfile", str((out / "sweep.yaml").resolve())], cwd=out, capture_output=True, text=True, timeout=120, check=True
    )
    print(re.search(r"job +count\n.*?\ntotal +\d+", done.stdout, re.S)[0])
else:
    print("pip install 'otclib[batch]' for Snakemake")

# %% [markdown]
# `configs/published` has a file of this kind for each of five systems on three data sets. The comments in a file say
# which of its values come from published code, which from the authors' logs, and which are ours. The hours are estimates
# from counted operations. Nobody has measured these runs on a GPU.

# %%
rows = []
for path in sorted((repository / "configs" / "published").glob("*.yaml")):
    found, head = config.read(path), path.read_text()
    hours = re.search(r"cost: about ([\d.]+) hours on one A100, ([\d.]+) on one H100", head)
    row = {key: found[key] for key in ("defense", "dataset", "epochs", "batch_size", "lr", "optimizer")}
    rows.append(row | {"hours, A100": float(hours[1]), "hours, H100": float(hours[2])})
pd.DataFrame(rows).sort_values(["dataset", "hours, A100"]).set_index(["dataset", "defense"])

# %% [markdown]
# ## From the laptop to the cluster, line by line
#
# These lines of a file or a command change. Everything else stays.
#
# | | laptop | one machine with eight GPUs | cluster |
# |---|---|---|---|
# | data | `dataset: scenes` | `dataset: cc3m`, `root: /data/cc3m` | the same, on a file system that all nodes share |
# | model | `model: small` | `model: RN50` | `model: RN50` |
# | batch | `batch_size: 64` | `batch_size: 512` | `batch_size: 512` |
# | images | in memory | `workers: 8` | `workers: 8` |
# | safety | end of each epoch | `checkpoint_every: 1000` | `checkpoint_every: 1000` |
# | processes | none | `accelerate launch --num_processes 8` | `processes: 8` |
# | runs | `otclib train --config` | `snakemake --cores all --resources gpu=8` | `snakemake --profile` |
#
# ## 6. Watch the curves
#
# A run writes a value every ten steps into `tensorboard` in its folder. Point TensorBoard at the folder of all runs, and
# it shows them over each other:
#
# ```sh
# tensorboard --logdir ../runs/cluster
# ```
#
# `tracker: wandb` or `tracker: mlflow` sends the curves elsewhere, and `tracker: none` writes none. The values can be
# read without TensorBoard's page, too:

# %%
steps, rates = workbook.curve(out / "killed", "lr")
print(f"killed and resumed: {len(steps)} values of the learning rate, from step {steps[0]} to step {steps[-1]}")

# %% [markdown]
# ## Summary
#
# - A YAML file is a run. The command line, several processes and the workflow take the same keys.
# - Several processes share every batch and compute one loss, so their number changes the speed and not the result,
#   up to rounding.
# - A killed run goes on from its last checkpoint, with the same bits at the end.
# - Images that do not fit into memory are decoded by workers, with the same losses.
# - A sweep is a grid of the same keys, and a profile takes it to SLURM or Kubernetes.
#
# ## Exercises
#
# 1. Three processes are to share a batch of 32. What happens, and is anything written?
#
# <details><summary>Solution</summary>
#
# The command refuses, because the processes could not have equally many pairs. No run folder is made.
#
# ```python
# process = workbook.start(["--config", file, "--out", out / "three", "--batch-size", "32"], processes=3)
# try:
#     workbook.finish(process)
# except RuntimeError as error:
#     print(re.search(r"a batch of .* equally", str(error))[0])
# print((out / "three" / "config.json").exists())
# ```
#
# </details>
#
# 2. Add CleanCLIP to the sweep, and a set without poison to the attacks. How many runs are planned, and which must wait?
#
# <details><summary>Solution</summary>
#
# There are 18 runs. CleanCLIP repairs the run of `clip` on the same attack and seed, so it waits for that. Every
# poisoned run waits for the undefended run without poison, with which its attack is compared.
#
# ```python
# more = sweep | {"attacks": {"none": [], **sweep["attacks"]}}
# more |= {"systems": sweep["systems"] | {"cleanclip": {"defense": "cleanclip"}}}
# longer = planned(Grid(more))
# print(f"{len(longer)} runs, {(longer['waits for'] != 'nothing').sum()} of them wait")
# longer
# ```
#
# </details>
#
# 3. One million images of 224 pixels are to stay in the memory of one machine with eight processes. How much is it, and
# what should `image_memory` be?
#
# <details><summary>Solution</summary>
#
# Every process holds all images, so it is eight times 140 GiB. `image_memory` counts the bytes of one process, so it
# would be 150,528,000,000. Decoding costs less: leave the default, and give `workers` the cores that the machine has for
# each process.
#
# ```python
# each = 1_000_000 * 3 * 224**2
# print(f"image_memory {each:,} bytes, {8 * each / GIB:,.0f} GiB on the machine")
# ```
#
# </details>
