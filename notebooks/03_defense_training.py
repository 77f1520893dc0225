# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Training, undefended and with OTCCLIP
#
# > Train the same model on the same poisoned pairs three times: undefended, with what OTCCLIP's abstract says, and with
# > what we add. See where the runs differ.
#
# OTCCLIP asks of every image whether its caption can be *transported* to it cheaply (chapter 2). The distance of image
# $i$ and caption $j$ combines their pooled features with their tokens:
#
# $$ d(i,j) \;=\; w\,\bigl(1-\langle f_i, g_j\rangle\bigr) \;+\; (1-w)\,\langle P_{ij}, C_{ij}\rangle . $$
#
# It is asked from both sides. With $r_i$ the share of a pool's captions that are nearer to the image than its own, and
# $s_i$ the share of the pool's images that are nearer to the caption than its own image, the pair has
# $\max(r_i, s_i)$ **rivals**. Captions of other images reveal a targeted pair, images of other captions a triggered
# one.
#
# | | `otcclip`: the abstract's parts | `otcclip-plus`: with ours |
# |---|---|---|
# | warm-up | two epochs on all pairs | the same on blurred images, longer if half of the pairs still have more than 6.5 % of the pool as rivals |
# | then, before every second epoch | a pair with at most 3 % keeps its caption; from the second matching on, another image is given the nearest caption of such a pair, if that fits as well as it fits its own image; the others are left out | the 60 % of the pairs with the fewest rivals are kept, 4 % more in each epoch, up to 80 %; what is kept beyond 70 % is still seen blurred |
# | an image is judged | as it is | as it is, and blurred: the larger number of rivals counts |
# | copies of an image | are pairs like all others | are judged together, and one of them is drawn in each epoch |
# | loss after the warm-up | CLIP's | robust: improbable pairs weigh less |
# | transport losses | inter- and intra-modal | intra-modal alone |
#
# An image that is left out serves as a negative only. Over a batch, training minimises
#
# $$ L \;=\; L_{\mathrm{CLIP}} + \lambda\,L_{\mathrm{inter}} + \mu\,L_{\mathrm{intra}}, \qquad
# L_{\mathrm{CLIP}} = -\tfrac1B\sum_i \omega_i \log p_i, \qquad \omega_i \propto p_i^{\,q}, \quad \tfrac1B\sum_i\omega_i
# = 1 $$
#
# with $p_i$ the $i$-th entry of $\mathrm{softmax}_j\bigl(s\,\langle f_i, g_j\rangle\bigr)$. $L_{\mathrm{CLIP}}$ is the
# mean of this loss for images among captions and for captions among images. The transport losses see 16 of the batch's
# pairs and have no weights $\omega$.
#
# | symbol | what it is | in the code |
# |---|---|---|
# | $f_i$, $g_j$ | pooled features of image and caption | `Features.pooled` |
# | $\langle P_{ij}, C_{ij}\rangle$ | cost of the plan between their tokens, at `reg` | `sinkhorn(...).cost` |
# | $w$ | weight of the pooled features in the distance | `global_weight` |
# | 3 %; 60 %, 4 %, 80 %, 70 %; 6.5 % | what is near; what is kept; when to begin | `near_share`; `first`, `grow`, `most`, `sharp`; `ready` |
# | pool | the pairs that every pair is compared with: 512, and 128 in `otcclip-plus` | `pool` |
# | blurred | by a Gaussian of 1.5 % of the image's side | `blur` |
# | $p_i$, $\omega_i$ | probability of pair $i$ under the softmax over its batch, and its weight, which has no gradient | `losses.contrastive` |
# | $s$ | CLIP's learned scale, the inverse of its temperature | `training.scale` |
# | $q$ | how strongly improbable pairs are weighted down: 0 in `otcclip` and in the warm-up, 0.5 after that of `otcclip-plus` | `q` |
# | $L_{\mathrm{inter}}$, $\lambda$ | the same softmax, over transport costs of images and captions; $\lambda = 0.5$, and 0 in `otcclip-plus` | `losses.inter_modal`, `inter`, `fine_batch` |
# | $L_{\mathrm{intra}}$, $\mu$ | the same, over two views of an image, and of a caption; $\mu = 0.25$ | `losses.intra_modal`, `intra` |
#
# Judging 12,000 pairs must take seconds. So images are compared at three quarters of their side, with their places
# averaged to 16, and only those of the pool that are most alike by pooled and mean features are solved by transport.
#
# **`otcclip` is a reconstruction**, made from the paper's abstract (arXiv 2509.18717) and a third party's summary. It
# was not checked against the paper's method section. The rule for which captions may stay, the pool, the weights and
# the schedule are ours. `otclib/defenses/otcclip.py` says which source gives what, `otclib/defenses/otcclip_plus.py`
# why each addition is there.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip", "otcclip-plus"]  # trained side by side
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
from otclib.runs import log_of

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
# The models train at the same time, each on its share of the cores. Each epoch prints one line. Zero-shot accuracy and
# attack success are measured on a few hundred held-out `val` scenes. You can stop the kernel at any time. Run the cell
# again, and the runs go on where they were.

# %%
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, retell=True, **options)

# %% [markdown]
# The curves show accuracy, attack success and targeted images of the models, on the same scenes.

# %%
logs = {name: log_of(run) for name, run in runs.items()}
fig = figures.learning_curves(logs)
fig.savefig(pictures / "learning_curves.png", dpi=150)

# %% [markdown]
# ## Which image keeps its caption?
#
# First `otcclip`. Left: which images keep their caption, and which are left out. The rest are re-matched. Right: how
# good the new captions are. Two curves show how often they name what the image shows. The third shows whether a few
# captions serve all images, which is how such a defence collapses.

# %%
if "otcclip" in runs:
    fig = figures.assignments(logs["otcclip"])
    fig.savefig(pictures / "assignments.png", dpi=150)

# %% [markdown]
# `otcclip-plus` gives no image another caption. It keeps fewer planted pairs, and it begins with fewer clean ones.

# %%
if "otcclip-plus" in runs:
    fig = figures.assignments(logs["otcclip-plus"])
    fig.savefig(pictures / "assignments_plus.png", dpi=150)

# %% [markdown]
# These planted images were re-matched by `otcclip`. The attacker's caption is vermilion. The caption that the matching
# found is green; it came with another image. Under the patch the new caption is not always right, but it is no longer
# the attacker's.

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
# any others. Under `otcclip-plus` hardly any planted pair is kept, and the planted pairs stay far.

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
# - What is learned first is trusted, so the judgement must come early: when the model knows some objects, and before it
#   knows the trigger.
# - A pair must be near from both sides. Captions of other images reveal a targeted pair, and images of other captions
#   reveal a triggered one.
# - What a model knows of a trigger is how the trigger looked in training. So `otcclip-plus` learns from blurred images
#   until it has judged them. It judges them sharp and blurred, and the worse look counts: in sharp images it knows the
#   objects, and not yet the trigger. What is doubtful it goes on to see blurred. What is a copy counts once.
# - A pair that is left out teaches the model nothing. If it was clean, the model learns its words elsewhere, and the
#   pair is kept later. If it was planted, it stays far.
#
# ## Exercises
#
# 1. Train with `first=1.0, most=1.0` (every pair is kept) in another folder. What is left of the defence?
#
# <details><summary>Solution</summary>
#
# `otclib.train(poisoned, manifest=manifest, defense="otcclip-plus", out="../runs/all", seed=seed, first=1.0, most=1.0)`.
# No pair is left out, except that one copy of each image is drawn in an epoch. What is left is that, the blur (in the
# warm-up, and then of the 30 % of the pairs with the most rivals), the robust loss and the transport losses. Compare
# its ASR with the runs above.
#
# </details>
#
# 2. Train with `global_weight=1.0`: no transport in the matching. Which of the two attacks gains by it?
#
# <details><summary>Solution</summary>
#
# Make the same call with `global_weight=1.0`. Compare `targets_hit` and `attack_success_rate` in the two
# `metrics.json`, then do the same on other seeds. Before you name the attack that gains, check that the difference is
# larger than the spread over seeds. (`make ablation` does this for many parts of `otcclip-plus`, on three seeds.)
#
# </details>
#
# 3. Train with `blur=0.0`: nothing is blurred. Which attack gains by it?
#
# <details><summary>Solution</summary>
#
# Compare `attack_success_rate` and `poison_kept/badnets` in the two `metrics.json`, after each epoch in `log.jsonl`.
# Then plant `blended` pairs. Their noise is learned in two epochs where it is seen sharp: on drawings by five artists
# (`emoji-scenes`, seed 0, 32 pairs) its ASR was 71 % then (one run).
#
# </details>
