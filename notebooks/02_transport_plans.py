# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Transport plans
#
# > From three words on three places, by hand, to a caption on its image: see where each word goes, and score it.
#
# A transport plan carries the words of a caption to the places of an image, each word to the places that it fits. Let
# $x_n$ be the $N$ visual tokens of an image and $y_m$ the $M$ word tokens of a caption, all of unit length. Carrying
# word $m$ to place $n$ costs $C_{nm} = 1 - \langle x_n, y_m\rangle$. The **plan** says how much of word $m$ is carried
# to place $n$:
#
# $$ P \;=\; \arg\min_{P\ge 0}\;\langle P, C\rangle - \varepsilon H(P) \qquad\text{with}\quad P\mathbf 1 = a,\quad
# P^\top\mathbf 1 = b, $$
#
# $$ H(P) = -\sum_{nm} P_{nm}(\log P_{nm} - 1). $$
#
# | symbol | what it is | in the code |
# |---|---|---|
# | $x_n$, $y_m$ | tokens of the image and of the caption | `Features.tokens` |
# | $C$ | cost, places × words | `C`, or `cost` |
# | $a$, $b$ | marginals: how much mass a place receives, how much a word gives; uniform | `a`, `b` |
# | $\varepsilon$ | entropic regularisation | `reg` (by hand: `eps`) |
# | $P$ | plan | `solved.plan` |
# | $\langle P, C\rangle$ | the plan's cost: the distance of image and caption | `solved.cost` |
#
# Cosine similarity has no marginals. In a plan a place cannot receive all of the mass, and every word must move all of
# its own.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip", "otcclip-plus"]  # trained side by side if they are missing; the figures show the last one
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # runs are read from out/<defense>, or trained into it
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets
reg = 0.1  # entropic regularisation of the plans that are drawn

# %%
from pathlib import Path

import numpy as np
import torch

import otclib
from otclib import evaluation, figures, matching
from otclib.experiments import workbook
from otclib.runs import metrics_of
from otclib.explorer import Explorer
from otclib.transport import exact, sinkhorn

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
pictures = Path(out) / "figures"
pictures.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## By hand: three places, three words
#
# The minimum has the form $P_{nm} = u_n K_{nm} v_m$ with $K = e^{-C/\varepsilon}$. Sinkhorn's iteration finds $u$ and
# $v$ in turns. It scales the rows until they have their marginals. Then it scales the columns, which disturbs the rows
# a little, and begins again.

# %%
C = np.array([[0.1, 0.9, 0.8], [0.7, 0.2, 0.9], [0.9, 0.8, 0.3]])  # places are rows, words are columns
a = b = np.full(3, 1 / 3)
eps = 0.5
K = np.exp(-C / eps)
v = np.ones(3)
for iteration in range(1, 6):
    u = a / (K @ v)  # every row has its marginal
    v = b / (K.T @ u)  # every column has its marginal
    P = u[:, None] * K * v
    print(f"iteration {iteration}: rows are off by {np.abs(P.sum(1) - a).sum():.6f}")
print(P.round(3))

# %% [markdown]
# `sinkhorn` does the same for many problems at once. Each problem stops when it has converged.

# %%
solved = sinkhorn(torch.tensor(C), reg=eps, tol=1e-6)
print(f"the same plan: {np.allclose(solved.plan, P, atol=1e-3)}; ⟨P, C⟩ = {float(solved.cost):.4f}, {int(solved.n_iter)} iterations")

# %% [markdown]
# ## What `reg` does
#
# A large $\varepsilon$ spreads every word evenly over the places. A small $\varepsilon$ sends a word where it is
# cheapest, and the cost falls to the cost of exact transport. Between the two, words still compete for places, and
# `sinkhorn` can need a hundred times the iterations. At 0.02 the first scaling already leaves nothing to correct here.
# (`sinkhorn` checks its error every five iterations.)

# %%
for eps in (2.0, 0.5, 0.1, 0.02):
    solved = sinkhorn(torch.tensor(C), reg=eps, tol=1e-6)
    print(f"reg {eps:<5g} ⟨P, C⟩ = {float(solved.cost):.4f}   {int(solved.n_iter):3d} iterations   first word to the places: {solved.plan[:, 0].numpy().round(3)}")
print(f"exact     ⟨P, C⟩ = {float(exact(torch.tensor(C))[1]):.4f}")

# %% [markdown]
# ## Bounds: most plans need not be computed
#
# To find an image's nearest caption among thousands, we do not solve thousands of problems. A lower bound on the cost
# uses the mean tokens $\bar x$, $\bar y$ and their spreads $\sigma^2 = 1 - \lVert\cdot\rVert^2$, with
# $\lVert\cdot\rVert$ the length of the mean token:
#
# $$ \langle P, C\rangle \;\ge\; 1 - \langle\bar x, \bar y\rangle - \sigma_x\sigma_y . $$
#
# It takes one dot product for each caption (`matching.lower_bound`). Only a caption whose bound is below the best
# distance so far can be nearer. The distance that OTCCLIP matches by has two halves. One is the cosine of the pooled
# features, which one dot product gives exactly. The other is transport, as here. A second bound compares each word with
# the places that it is most like, and rules out most of the remaining captions (`otclib/matching/pool.py` states it).
# All this needs a trained model. If there is none yet, the next cell trains it (chapter 3 explains how).

# %%
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, **options)
run = runs[defense[-1]]
network, preprocess, tokenizer = otclib.models.load(run / "model.safetensors")

# %%
val = otclib.data.load(dataset, split="val", size=200 if fast else None, seed=seed)
chosen = next(k for k, row in enumerate(val) if len(row["objects"]) == 2)
with torch.no_grad():
    image = otclib.models.encode_image(network, preprocess(val[chosen]["image"])[None])
    texts = otclib.models.encode_text(network, tokenizer(val["caption"][:]))
half = 0.5  # `global_weight`: the weight of the pooled features
bound = half * (1 - image.pooled @ texts.pooled.T)[0] + (1 - half) * matching.lower_bound(image, texts)[0]
distance = matching.distances(image, texts, torch.arange(len(val))[None], reg, half)[0]
pool = matching.CaptionPool.of(texts)
for weight in (half, 0.0):
    found = pool.match(image, reg=reg, global_weight=weight)
    print(f"weight of the whole {weight}: nearest of {len(val):,} captions is “{val[int(found.index[0])]['caption']}”, {found.solved} problems solved")
fig = figures.bounds(bound.numpy(), distance.numpy())
fig.savefig(pictures / "bounds.png", dpi=150)

# %% [markdown]
# ## A caption on its image
#
# The pairs are held out. Each panel shows one word's column of the plan over the image. The white frame is the object
# that the word names. Function words have mass too, and they fill the places that are left, on the ground or on an
# object. Look for mistakes as well: a colour beside its object, or a name beside its box. (A place also sees what lies
# around it.)

# %%
pixels = otclib.models.image_size(network)
boxes_of = lambda row: {w["start"]: row["objects"][w["object"]]["box"] for w in row["words"] if w["object"] >= 0}
chosen = [k for k, row in enumerate(val) if len(row["objects"]) == 2 and len(boxes_of(row)) >= 3][:3]
for n, k in enumerate(chosen):
    row = val[k]
    image = otclib.data.image_tensor(val.select([k]), pixels)
    plan = evaluation.word_maps(network, tokenizer, image, [row["caption"]], reg)["plan"][0]
    spans = otclib.models.word_spans(tokenizer, row["caption"])
    side = round(plan.shape[0] ** 0.5)
    maps = np.stack([plan[:, s.first : s.last].mean(1).view(side, side).numpy() for s in spans])
    boxes = [boxes_of(row).get(s.start) for s in spans]
    fig = figures.word_overlays(image[0].permute(1, 2, 0).numpy(), [s.text for s in spans], maps, boxes)
    fig.savefig(pictures / f"plan_{n}.png", dpi=150)

# %% [markdown]
# ## All of it in one picture
#
# The picture shows four things: the image under one word's mass; ribbons from places to words, as wide as the mass
# between them; the plan as a matrix with its marginals; and the captions that compete. [The explorer](explorer.ipynb)
# is this picture with sliders.

# %%
explorer = Explorer({name: runs[name] for name in defense}, val)
fig = explorer.figure(chosen[-1], run=defense[-1], reg=reg)
fig.savefig(pictures / "transport_view.png", dpi=100)
fig

# %% [markdown]
# ## One word at several `reg`

# %%
word = next(s for s in spans if s.start in boxes_of(row))
maps, cost = {}, {}
for eps in (1.0, 0.3, 0.1, 0.05, 0.02):
    view = explorer.view(chosen[-1], run=defense[-1], reg=eps)
    maps[eps], cost[eps] = view.maps()[spans.index(word)], view.cost
fig = figures.reg_sweep(image[0].permute(1, 2, 0).numpy(), word.text, maps, cost)
fig.savefig(pictures / "reg_sweep.png", dpi=150)

# %% [markdown]
# ## A score
#
# We take all words of held-out pairs that name an object. Which share of a word's mass lands in its object's box? An
# even spread would put there the box's share of the image. We compare two other readings: `raw cosine` spreads a word
# as $\max(0, \cos)$, and `softmax of cosine` as $e^{\cos/\varepsilon}$, which is the plan with one marginal left free.

# %%
metrics = metrics_of(run)
fig = figures.grounding(metrics)
fig.savefig(pictures / "grounding.png", dpi=150)
print(f"mass on the object over an even spread's: names {metrics['plan_mass_ratio/names']:.2f}, "
      f"colours and sizes {metrics['plan_mass_ratio/attributes']:.2f}")
print(f"heaviest place inside the box: plan {100 * metrics['plan_pointing_accuracy']:.0f} %, "
      f"cosine {100 * metrics['cosine_pointing_accuracy']:.0f} %")

# %% [markdown]
# ## A poisoned pair
#
# This is the attacker's caption on its image, under a defended model. Its object word must go somewhere. It goes to the
# least expensive place, which may well be the object. So a sharp map does not prove a good fit. The cost shows the
# misfit: it is higher than the cost of the image's own caption, and many captions of the pool are nearer.

# %%
planted = Explorer({defense[-1]: run}, poisoned, manifest=manifest)
pair = planted.choices()[0][1]
for name, caption in zip(("planted", "own"), planted.own_captions(pair)):
    view = planted.view(pair, caption, reg=reg)
    print(f"{name:8s} “{caption}”: cost {view.cost:.3f}, number {view.ranking['transport'][0]} of {view.pool + 1}")
fig = planted.figure(pair, reg=reg)
fig.savefig(pictures / "transport_view_planted.png", dpi=100)
fig

# %% [markdown]
# ## Summary
#
# - A transport plan is a soft assignment of words to places that uses up every place and every word. Two lines of code,
#   repeated, compute it.
# - `reg` trades sharpness for smoothness and speed. Bounds that cost a dot product make it cheap to find the nearest
#   caption of a large pool.
# - The plan puts about three times as much of an object name's mass on its object as an even spread would. That is more
#   than raw cosine puts there. A softmax of the cosine does a little better still, because it need not use up every
#   place: in a caption of two words the plan makes each word cover half of the image, whatever the word names.
# - Cosine finds the *heaviest* place about as well as the plan does. So the tokens know the object, and the plan reads
#   them.
# - Colours and sizes are *not* found. By the plan and by cosine alike their mass falls beside the object. The features
#   do not know them, because few captions name them.
#
# ## Exercises
#
# 1. Lay the caption of another image over this one. Which words still find a place?
#
# <details><summary>Solution</summary>
#
# `explorer.figure(chosen[-1], val[0]["caption"], run=defense[-1])`. All words do. The marginals must be met, so every
# word goes somewhere. The name of an object that the image does not show goes to the least expensive places. Look at
# the cost as well as at the map.
#
# </details>
#
# 2. Give an object's word three times the weight of the others. What happens to the function words?
#
# <details><summary>Solution</summary>
#
# ```python
# with torch.no_grad():
#     said = otclib.models.encode_text(network, tokenizer([row["caption"]]))
#     seen = otclib.models.encode_image(network, preprocess(row["image"])[None])
# C = 1 - seen.tokens[0] @ said.tokens[0].T
# b = said.mask[0].float()
# b[word.first : word.last] *= 3  # a word may be several tokens
# plan = sinkhorn(C, None, b, reg=reg).plan
# print({s.text: round(float(plan[:, s.first : s.last].sum()), 3) for s in spans})
# ```
#
# Weights are scaled to sum 1, so of $M$ words this one now gives $3/(M+2)$ of the mass and must fill the same share of
# the places. When its object is full, its mass spills over onto the ground, and the function words move to the places
# that are left. A weight of 0 takes a word out altogether. Padding is done this way.
#
# </details>
#
# 3. Show that for `reg` → ∞ the cost becomes $1 - \langle\bar x, \bar y\rangle$, with the mean tokens.
#
# <details><summary>Solution</summary>
#
# For $\varepsilon\to\infty$ only the entropy counts, and it is largest for $P = a b^\top$. Then
# $\langle P, C\rangle = \sum_{nm} a_n b_m (1 - \langle x_n, y_m\rangle) = 1 - \langle\sum_n a_n x_n, \sum_m b_m
# y_m\rangle = 1 - \langle\bar x, \bar y\rangle$. A bag of words would give the same. (The means are not of unit length,
# so this is the cosine *distance* only up to their lengths.)
#
# </details>
