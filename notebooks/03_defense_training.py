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
# $$ d(i,j) \;=\; w\,\bigl(1-\langle f_i, g_j\rangle\bigr) \;+\; (1-w)\,\langle P_{ij}, C_{ij}\rangle . $$
#
# A pair is **near** when its caption is among the nearest 3 % of a pool of captions for this image, *and* its image among the
# nearest 3 % of a pool of images for this caption. To ask it of 12,000 pairs in seconds, images are compared at three quarters
# of their side with their places averaged to 16, and of the pool's 512 captions (images) those 16 that pooled and mean features
# find most alike are solved by transport. What becomes of the pairs:
#
# | epochs | |
# |---|---|
# | 1 and 2 | warm-up: every image with its own caption, at three quarters of its side |
# | before 3 | first matching: near pairs are kept, the others are left out |
# | before 5 and 7 | near pairs are kept; any other image is re-matched with the nearest caption of a near pair, if it fits as well as that caption's own image does, and is left out if it does not |
#
# An image that is left out serves as a negative only. What is minimised, over a batch:
#
# $$ L \;=\; L_{\mathrm{CLIP}} + \lambda\,L_{\mathrm{inter}} + \mu\,L_{\mathrm{intra}}, \qquad
# L_{\mathrm{CLIP}} = -\tfrac1B\sum_i \omega_i \log p_i, \qquad \omega_i \propto p_i^{\,q}, \quad \tfrac1B\sum_i\omega_i = 1 $$
#
# (the mean of that for images among captions and for captions among images), with $p_i$ the $i$-th of
# $\mathrm{softmax}_j\bigl(s\,\langle f_i, g_j\rangle\bigr)$. The transport losses see 16 of the batch's 64 pairs and have no weights $\omega$.
#
# | symbol | what it is | in the code |
# |---|---|---|
# | $f_i$, $g_j$ | pooled features of image and caption | `Features.pooled` |
# | $\langle P_{ij}, C_{ij}\rangle$ | cost of the plan between their tokens, at `reg` | `sinkhorn(...).cost` |
# | $w$ | weight of the whole | `global_weight` |
# | 3 %, pool | how near is near, and among how many | `keep`, `pool` |
# | $p_i$, $\omega_i$ | probability of pair $i$ under the softmax over its batch, and its weight, which has no gradient | `losses.contrastive` |
# | $s$ | CLIP's learned scale, the inverse of its temperature | `trainer.scale` |
# | $q$ | how much improbable pairs are doubted: from 0.5 to 1 over a warm-up, then 1 | `q` |
# | $L_{\mathrm{inter}}$, $\lambda$ | the same softmax, over transport costs of images and captions; $\lambda = 0.5$ | `losses.inter_modal`, `inter`, `fine_batch` |
# | $L_{\mathrm{intra}}$, $\mu$ | the same, over two views of an image, and of a caption; $\mu = 0.25$ | `losses.intra_modal`, `intra` |
#
# The warm-up must not learn the poison, or the poison is near too. Three things keep it out. A caption that contradicts what the
# image shows is improbable as soon as objects are known, and its weight $\omega$ is then small. The warm-up sees strong views
# (a part of the image, in any hue): an image is harder to know by heart, while what it shows is learned sooner. And its images
# are small, so that a patch of a few pixels is learned later than an object.
#
# **This is a reconstruction**, made from the paper's abstract (arXiv 2509.18717) and a third party's summary, and not checked
# against its method section. Which captions may stay, the pool, the weights and the schedule are ours;
# `otclib/defenses/otcclip.py` says what is known from whom.

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
from otclib import figures
from otclib.experiments import workbook
from otclib.runs import config_of, log_of

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
pictures = Path(out) / "figures"
pictures.mkdir(parents=True, exist_ok=True)

# %%
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
print(f"{len(poisoned):,} pairs, {len(manifest)} of them planted")

# %% [markdown]
# ## Train
#
# Both at once, each on its share of the cores; one line per epoch. Zero-shot accuracy and attack success are followed on a
# few hundred held-out `val` scenes. Stop the kernel if you like: run the cell again, and both go on where they were.

# %%
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, retell=True, **options)

# %% [markdown]
# Accuracy, attack success and targeted images of both, on the same scenes. Images reach their full size in the third epoch, and
# there the undefended model learns the trigger.

# %%
logs = {name: log_of(run) for name, run in runs.items()}
fig = figures.learning_curves(logs)
fig.savefig(pictures / "learning_curves.png", dpi=150)

# %% [markdown]
# ## Who was given which caption?
#
# Left: who keeps its caption, and who is left out; the rest takes another one. Right, how good those are: how often they name
# what the image shows, and whether a few captions serve all images (which is how such a defence collapses).

# %%
if "otcclip" in runs:
    fig = figures.assignments(logs["otcclip"], config_of(runs["otcclip"])["options"]["warmup"])
    fig.savefig(pictures / "assignments.png", dpi=150)

# %% [markdown]
# Planted images that were given another caption: the attacker's (vermilion), and the one that transport found (green), which came
# with another image. Under the patch it is not always the right one, but it is no longer the attacker's.

# %%
if "otcclip" in runs:
    table = Dataset.from_parquet(str(runs["otcclip"] / "pairs.parquet"))
    planted = set(manifest["id"])
    caption = dict(zip(poisoned["id"], poisoned["caption"]))
    moved = [k for k, row in enumerate(table) if row["id"] in planted and row["fate"] == "re-matched"]
    kind = dict(zip(manifest["id"], manifest["kind"]))
    rows = []
    for each in attack:
        of_kind = [k for k in moved if kind[table[k]["id"]] == each]
        for k in of_kind[:: max(1, len(of_kind) // 3)][:3]:
            given = caption[table[k]["caption_from"]]
            rows.append({"image": poisoned[k]["image"], "caption": poisoned[k]["caption"], "given": given, "planted": True})
    if rows:
        fig = figures.rematched(rows, "planted pairs, re-matched")
        fig.savefig(pictures / "rematched.png", dpi=150)

# %% [markdown]
# ## Clean and planted pairs, apart
#
# How they come apart, epoch by epoch: $1 - \cos$ of an image and its own caption, for clean pairs and for each attack's.
# The line is the median, the band holds eight in ten. The undefended model learns the planted pairs by heart, like any others;
# under OTCCLIP hardly one of them stays a pair, and they stay far.

# %%
bands = workbook.distances_by_epoch(runs, poisoned, manifest)
fig = figures.distance_bands(bands)
fig.savefig(pictures / "distance_bands.png", dpi=150)

# %% [markdown]
# The same at the end, pair by pair.

# %%
last = {name: list(epochs.values())[-1] for name, epochs in bands.items()}
fig = figures.separation({name: (of["clean"], np.concatenate([of[kind] for kind in of if kind != "clean"])) for name, of in last.items()})
fig.savefig(pictures / "separation.png", dpi=150)

# %% [markdown]
# ## Summary
#
# - Without a defence the planted pairs are learned like any others: the objects first, the trigger an epoch later, the targeted
#   images one by one, from the second epoch to about the seventh.
# - What is learned first is trusted. The robust warm-up on small images lets the objects be first; then a caption that names
#   none of them is *far*, and its image is re-matched or left out.
# - A pair that is near is kept. Re-assigning every caption would make a few captions serve all images.
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
# robust loss and the transport losses on all pairs; compare its ASR with that of both runs above. (On three seeds: chapter 5, *no matching*.)
#
# </details>
#
# 2. Train with `global_weight=1.0`: no transport in the matching. Which of the two attacks gains by it?
#
# <details><summary>Solution</summary>
#
# The same call with `global_weight=1.0`. Compare `targets_hit` and `attack_success_rate` in the two `metrics.json`, then the same
# on other seeds: say which difference is larger than their spread before you name a winner. (`make ablation` does it for every
# part of OTCCLIP, on three seeds.)
#
# </details>
#
# 3. Train with `q=0.0, strong=False`: an ordinary warm-up. Which pairs are kept at the first matching, and why?
#
# <details><summary>Solution</summary>
#
# Look at `poison_kept` of the first epoch after the warm-up. Without the robust weights the trigger is learned soon after
# the objects, so at the first matching a triggered image *is* near its planted caption, and the pair stays: what is
# learned first is trusted. (On seed 11 an ordinary warm-up of two epochs at full size kept 48 % of the triggered pairs.)
#
# </details>
