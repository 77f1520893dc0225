# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Training, without a defence and with OTCCLIP
#
# > Train the same model on the same poisoned pairs twice, and watch where the two part.
#
# OTCCLIP asks of every image whether its caption is *transported* to it cheaply (chapter 2). The distance of image $i$ and
# caption $j$ joins what the two say as a whole with what their tokens say one by one:
#
# $$ d(i,j) \;=\; w\,\bigl(1-\langle \bar v_i, \bar t_j\rangle\bigr) \;+\; (1-w)\,\langle P_{ij}, C_{ij}\rangle . $$
#
# | symbol | what it is | in the code |
# |---|---|---|
# | $\bar v_i$, $\bar t_j$ | pooled features of image and caption | `Features.pooled` |
# | $\langle P_{ij}, C_{ij}\rangle$ | cost of the plan between their tokens, at `reg` | `sinkhorn(...).cost` |
# | $w$ | weight of the whole | `global_weight` |
# | $q$ | how much the warm-up doubts improbable pairs | `q` |
#
# A pair is **near** when the caption is among the nearest 3 % (`keep`) of a pool of captions for this image, *and* the
# image among the nearest 3 % of a pool of images for this caption. After a warm-up of three epochs, before every epoch:
# a near pair stays; any other image takes the nearest caption of a near pair, if it fits as well as that caption's own
# image does; else it is left out and serves as a negative only. A model's first matching separates, later ones also
# re-assign. After the very first the weights are forgotten, and training starts afresh on what it kept.
#
# The warm-up must not learn the poison, or the poison is near too. Two things keep it out. Its contrastive loss weights
# every pair by $p^q$, with $p$ the pair's own probability in the batch: a caption that contradicts what the image shows
# is improbable as soon as objects are known, and hardly heard. And it sees strong views (a part of the image, in any
# hue): an image is harder to know by heart, while what it shows is learned sooner. Where a little of the trigger is
# learned all the same, the restart forgets it: what passed the first matching is too little to be learned again.
#
# **This is a reconstruction.** Of the paper (arXiv 2509.18717) we could read the abstract and summaries only. Which
# captions may stay, the pool, the weights and the schedule are ours; `otclib/defenses/otcclip.py` says which.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip"]  # trained side by side
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # runs land in out/<defense>; a finished one is not trained again
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets

# %%
from pathlib import Path

import numpy as np
from datasets import Dataset

import otclib
from otclib import plots, results, workbook

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
figures = Path(out) / "figures"
figures.mkdir(parents=True, exist_ok=True)

# %%
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
print(f"{len(poisoned):,} pairs, {len(manifest)} of them planted")

# %% [markdown]
# ## Train
#
# Both at once, each on its share of the cores; one line per epoch. Zero-shot accuracy and attack success are followed on a
# few hundred held-out `val` scenes. Stop the kernel if you like: run the cell again, and both go on where they were.

# %%
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, **options)

# %% [markdown]
# The drop of OTCCLIP after its third epoch is the restart: new weights, on what the first matching kept.

# %%
logs = {name: results.log(run) for name, run in runs.items()}
fig = plots.learning_curves(logs)
fig.savefig(figures / "learning_curves.png", dpi=150)

# %% [markdown]
# ## Who was given which caption?
#
# Three numbers tell a defence at work from one that collapses: how often a clean image's caption names its true object,
# how often a planted image's does, and how many different captions are in use. (Images that are left out have none.)

# %%
if "otcclip" in runs:
    fig = plots.assignments(logs["otcclip"], results.config(runs["otcclip"])["options"]["warmup"])
    fig.savefig(figures / "assignments.png", dpi=150)

# %% [markdown]
# Planted images, with the attacker's caption (vermilion) and the one that transport gave them instead (green). It was
# somebody else's caption, of another image of the same thing.

# %%
if "otcclip" in runs:
    table = Dataset.from_parquet(str(runs["otcclip"] / "pairs.parquet"))
    planted = set(manifest["id"])
    caption = dict(zip(poisoned["id"], poisoned["caption"]))
    moved = [k for k, row in enumerate(table) if row["id"] in planted and row["fate"] == "re-matched"]
    rows = []
    for k in moved[:: max(1, len(moved) // 6)][:6]:
        given = caption[table[k]["caption_from"]]
        rows.append({"image": poisoned[k]["image"], "caption": poisoned[k]["caption"], "given": given, "planted": True})
    if rows:
        fig = plots.rematched(rows, "planted pairs, re-matched")
        fig.savefig(figures / "rematched.png", dpi=150)

# %% [markdown]
# ## Clean and planted pairs, apart
#
# The undefended model has learned the planted pairs by heart: their captions are as near as any. Under OTCCLIP they
# never became pairs, and stay far.

# %%
distances = {}
for name, run in runs.items():
    table = Dataset.from_parquet(str(run / "pairs.parquet"))
    d = np.array(table["own_distance"])
    is_planted = np.isin(np.array(table["id"]), np.array(manifest["id"]))
    distances[name] = (d[~is_planted], d[is_planted])
fig = plots.separation(distances)
fig.savefig(figures / "separation.png", dpi=150)

# %% [markdown]
# How they came apart, epoch by epoch: $1 - \cos$ of an image and its own caption, for clean pairs and for each attack's.
# The line is the median, the band holds eight in ten.

# %%
bands = workbook.distances_by_epoch(runs, poisoned, manifest)
fig = plots.distance_bands(bands)
fig.savefig(figures / "distance_bands.png", dpi=150)

# %% [markdown]
# ## Summary
#
# - Without a defence the planted pairs are learned like any others: the trigger together with the objects, the
#   targeted images a little later.
# - It is a race, and what is learned first is trusted. The robust warm-up lets the objects win it; then a caption that
#   names none of them is *far*, and is replaced or left out.
# - A pair that is near stays. Re-assigning every caption would make a few captions serve all images.
# - Both sides must agree: captions of other images tell a targeted pair, images of other captions tell a triggered one.
#
# ## Exercises
#
# 1. Train with `keep=1.0` (every pair stays) in another folder. What is left of the defence?
#
# <details><summary>Solution</summary>
#
# `otclib.train(poisoned, manifest=manifest, defense="otcclip", out="../runs/keep", seed=seed, keep=1.0)`. Every pair is near,
# so nobody is re-matched and nothing left out: `clean_kept` and `poison_kept` in its log are 1. What is left is the
# robust warm-up and, after the restart, the transport losses on all pairs; compare its ASR with that of both runs above.
#
# </details>
#
# 2. Train with `global_weight=1.0`: no transport in the matching. Which of the two attacks gains by it?
#
# <details><summary>Solution</summary>
#
# The same call with `global_weight=1.0`. Chapter 5 has the ablation over three seeds, *no transport in matching*: compare
# its row with *full*, the targets and the ASR each for itself. Say which difference is larger than the spread over seeds
# before you name a winner.
#
# </details>
#
# 3. Train with `q=0.0, strong=False`: an ordinary warm-up. Which pairs are kept at the first matching, and why?
#
# <details><summary>Solution</summary>
#
# Look at `poison_kept` of the first epoch after the warm-up. Without the robust weights the trigger is learned together with
# the objects, so at the first matching a triggered image *is* near its planted caption, and the pair stays: what is
# learned first is trusted. On seed 11 an ordinary warm-up of two epochs kept 48 % of the triggered pairs.
#
# </details>
