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
# > Train the same model on the same poisoned pairs twice, and see where the two runs differ.
#
# OTCCLIP asks of every image whether its caption can be *transported* to it cheaply (chapter 2). The distance of image
# $i$ and caption $j$ combines their pooled features with their tokens:
#
# $$ d(i,j) \;=\; w\,\bigl(1-\langle f_i, g_j\rangle\bigr) \;+\; (1-w)\,\langle P_{ij}, C_{ij}\rangle . $$
#
# A pair is **near** when two conditions hold. Its caption is among the nearest 3 % of a pool of captions for this
# image, *and* its image is among the nearest 3 % of a pool of images for this caption. Asking this of 12,000 pairs must
# take seconds, so two things are reduced. Images are compared at three quarters of their side, with their places
# averaged to 16. Of the pool's 512 captions (images) only the 16 that are most alike by pooled and mean features are
# solved by transport. This is what happens to the pairs:
#
# | epochs | |
# |---|---|
# | 1 and 2 | warm-up: every image with its own caption, at three quarters of its side |
# | before 3 | first matching: near pairs are kept, the others are left out |
# | before 5 and 7 | near pairs are kept; any other image is re-matched with the nearest caption of a near pair, if that caption fits it as well as it fits its own image; otherwise the image is left out |
#
# An image that is left out serves as a negative only. Over a batch, training minimises
#
# $$ L \;=\; L_{\mathrm{CLIP}} + \lambda\,L_{\mathrm{inter}} + \mu\,L_{\mathrm{intra}}, \qquad
# L_{\mathrm{CLIP}} = -\tfrac1B\sum_i \omega_i \log p_i, \qquad \omega_i \propto p_i^{\,q}, \quad \tfrac1B\sum_i\omega_i = 1 $$
#
# with $p_i$ the $i$-th entry of $\mathrm{softmax}_j\bigl(s\,\langle f_i, g_j\rangle\bigr)$. $L_{\mathrm{CLIP}}$ is the
# mean of this loss for images among captions and for captions among images. The transport losses see 16 of the batch's
# 64 pairs and have no weights $\omega$.
#
# | symbol | what it is | in the code |
# |---|---|---|
# | $f_i$, $g_j$ | pooled features of image and caption | `Features.pooled` |
# | $\langle P_{ij}, C_{ij}\rangle$ | cost of the plan between their tokens, at `reg` | `sinkhorn(...).cost` |
# | $w$ | weight of the pooled features in the distance | `global_weight` |
# | 3 %, pool | the share of the pool that counts as near, and the pool's size | `near_share`, `pool` |
# | $p_i$, $\omega_i$ | probability of pair $i$ under the softmax over its batch, and its weight, which has no gradient | `losses.contrastive` |
# | $s$ | CLIP's learned scale, the inverse of its temperature | `training.scale` |
# | $q$ | how strongly improbable pairs are weighted down: from 0.5 to 1 over a warm-up, then 1 | `q` |
# | $L_{\mathrm{inter}}$, $\lambda$ | the same softmax, over transport costs of images and captions; $\lambda = 0.5$ | `losses.inter_modal`, `inter`, `fine_batch` |
# | $L_{\mathrm{intra}}$, $\mu$ | the same, over two views of an image, and of a caption; $\mu = 0.25$ | `losses.intra_modal`, `intra` |
#
# The model must not learn the poison in the warm-up, because a planted pair that was learned is near too. Three things
# prevent it:
#
# - *The robust loss.* As soon as the model knows objects, a caption that contradicts the image is improbable, so its
#   weight $\omega$ is small.
# - *Strong views.* The warm-up shows a part of the image, in any hue. Such an image is harder to memorise, and its
#   object is learned sooner.
# - *Small images.* A patch of a few pixels is learned later than an object.
#
# **This is a reconstruction**, made from the paper's abstract (arXiv 2509.18717) and a third party's summary. It was
# not checked against the paper's method section. The rule for which captions may stay, the pool, the weights and the
# schedule are ours. `otclib/defenses/otcclip.py` says which source gives what, and `book/results/reconstruction.md`
# says more.

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
# Both models train at the same time, each on its share of the cores. Each epoch prints one line. Zero-shot accuracy and
# attack success are measured on a few hundred held-out `val` scenes. You can stop the kernel at any time. Run the cell
# again, and both runs go on where they were.

# %%
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, retell=True, **options)

# %% [markdown]
# The curves show accuracy, attack success and targeted images of both models, on the same scenes. Images reach their
# full size in the third epoch. In that epoch the undefended model learns the trigger.

# %%
logs = {name: log_of(run) for name, run in runs.items()}
fig = figures.learning_curves(logs)
fig.savefig(pictures / "learning_curves.png", dpi=150)

# %% [markdown]
# ## Which image was given which caption?
#
# Left: which images keep their caption, and which are left out. The rest are re-matched. Right: how good the new
# captions are. Two curves show how often they name what the image shows. The third shows whether a few captions serve
# all images, which is how such a defence collapses.

# %%
if "otcclip" in runs:
    fig = figures.assignments(logs["otcclip"], config_of(runs["otcclip"])["options"]["warmup"])
    fig.savefig(pictures / "assignments.png", dpi=150)

# %% [markdown]
# These planted images were re-matched. The attacker's caption is vermilion. The caption that the matching found is
# green; it came with another image. Under the patch the new caption is not always right, but it is no longer the
# attacker's.

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
# ## How clean and planted pairs separate
#
# The next figure shows $1 - \cos$ of an image and its own caption, epoch by epoch, for clean pairs and for each attack.
# The line is the median, and the band holds eight pairs in ten. The undefended model memorises the planted pairs like
# any others. Under OTCCLIP hardly any planted pair is kept, and the planted pairs stay far.

# %%
bands = workbook.distances_by_epoch(runs, poisoned, manifest)
fig = figures.distance_bands(bands)
fig.savefig(pictures / "distance_bands.png", dpi=150)

# %% [markdown]
# The same distances after the last epoch, pair by pair.

# %%
last = {name: list(epochs.values())[-1] for name, epochs in bands.items()}
fig = figures.separation({name: (of["clean"], np.concatenate([of[kind] for kind in of if kind != "clean"])) for name, of in last.items()})
fig.savefig(pictures / "separation.png", dpi=150)

# %% [markdown]
# ## Summary
#
# - Without a defence the planted pairs are learned like any others: first the objects, then the trigger an epoch later,
#   and the targeted images one by one, from the second epoch to about the seventh.
# - What is learned first is trusted. The robust warm-up on small images lets the model learn the objects first. Then a
#   caption that names none of them is *far*, and its image is re-matched or left out.
# - A near pair keeps its caption. Re-assigning every caption would make a few captions serve all images.
# - A pair must be near from both sides. Captions of other images reveal a targeted pair, and images of other captions
#   reveal a triggered one.
#
# ## Exercises
#
# 1. Train with `near_share=1.0` (every pair is kept) in another folder. What is left of the defence?
#
# <details><summary>Solution</summary>
#
# `otclib.train(poisoned, manifest=manifest, defense="otcclip", out="../runs/near", seed=seed, near_share=1.0)`. Every
# pair is near, so no image is re-matched or left out: `clean_kept` and `poison_kept` in its log are 1. What is left is
# the robust loss and the transport losses on all pairs. Compare its ASR with both runs above. (Chapter 5 has three
# seeds of this, *no matching*.)
#
# </details>
#
# 2. Train with `global_weight=1.0`: no transport in the matching. Which of the two attacks gains by it?
#
# <details><summary>Solution</summary>
#
# Make the same call with `global_weight=1.0`. Compare `targets_hit` and `attack_success_rate` in the two
# `metrics.json`, then do the same on other seeds. Before you name the attack that gains, check that the difference is
# larger than the spread over seeds. (`make ablation` does this for every part of OTCCLIP, on three seeds.)
#
# </details>
#
# 3. Train with `q=0.0, strong=False`: an ordinary warm-up. Which pairs are kept at the first matching, and why?
#
# <details><summary>Solution</summary>
#
# Look at `poison_kept` of the first epoch after the warm-up. Without the robust weights the trigger is learned soon
# after the objects. So at the first matching a triggered image *is* near its planted caption, and the pair is kept:
# what is learned first is trusted. (On seed 11 an ordinary warm-up of two epochs at full size kept 48 % of the
# triggered pairs.)
#
# </details>
