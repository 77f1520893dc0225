# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Transport plans
#
# > See where each word of a caption goes on the image, and score it against what the word really speaks of.
#
# The plan $P$ says how much of word $m$'s mass lies at place $n$. Its rows and columns are fixed by the marginals: each
# of the 64 places takes $1/64$, each of the $M$ words gives $1/M$. That is what cosine similarity does not have: a place
# cannot be claimed by all words, and no word can leave its mass at home.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = "otcclip"  # whose model is looked at
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # the run is read from out/<defense>, or trained if it is not there
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets
reg = 0.1  # entropic regularisation of the plans that are drawn

# %%
from pathlib import Path

import numpy as np
import torch

import otclib
from otclib import evaluation, plots, results
from otclib.transport import exact, sinkhorn

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
figures = Path(out) / "figures"
figures.mkdir(parents=True, exist_ok=True)
run = Path(out) / defense
if not (run / "metrics.json").exists():
    pairs = otclib.data.load(dataset, size=size, seed=seed)
    planned = [otclib.attacks.load(name) for name in attack]
    poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
    otclib.train(poisoned, manifest=manifest, defense=defense, model=model, seed=seed, out=run, **options)
network, preprocess, tokenizer = otclib.models.load(run / "model.safetensors")
pixels = otclib.models.image_size(network)

# %% [markdown]
# ## By hand: three words, three places
#
# Sinkhorn's iteration scales the rows of $K = e^{-C/\varepsilon}$ to the row marginal, then its columns, and again.

# %%
C = torch.tensor([[0.1, 0.9, 0.8], [0.7, 0.2, 0.9], [0.9, 0.8, 0.3]])
for eps in (1.0, 0.1, 0.02):
    solved = sinkhorn(C, reg=eps, tol=1e-6)
    print(f"reg {eps:<5g} <P, C> = {solved.cost:.4f} after {int(solved.n_iter)} iterations\n{solved.plan.numpy().round(3)}\n")
print(f"exact    <P, C> = {exact(C)[1]:.4f}")

# %% [markdown]
# ## A caption on its image
#
# A held-out pair. Each panel is one word's column of the plan, laid over the image; the white frame is what the word
# speaks of. Function words get their share of places too: they take the ground.

# %%
val = otclib.data.load(dataset, split="val", size=200 if fast else None, seed=seed)
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
    fig = plots.word_overlays(image[0].permute(1, 2, 0).numpy(), [s.text for s in spans], maps, boxes)
    fig.savefig(figures / f"plan_{n}.png", dpi=150)

# %% [markdown]
# The same plan as a matrix (the last of the three captions). The bars are its marginals: even on both sides.

# %%
fig = plots.plan_matrix((plan / plan.sum()).numpy()[:, : spans[-1].last][:, 1:], [s.text for s in spans for _ in range(s.last - s.first)])
fig.savefig(figures / "plan_matrix.png", dpi=150)

# %% [markdown]
# ## What the regularisation does
#
# A large `reg` spreads every word evenly, a small one sends it to few places; $\langle P, C\rangle$ falls towards the
# exact transport cost.

# %%
word = next(s for s in spans if s.start in boxes_of(row))
maps, cost = {}, {}
for eps in (1.0, 0.3, 0.1, 0.05, 0.02):
    image_features = otclib.models.encode_image(network, preprocess(image))
    text_features = otclib.models.encode_text(network, tokenizer([row["caption"]]))
    with torch.no_grad():
        C = 1 - image_features.tokens[0] @ text_features.tokens[0].T
    solved = sinkhorn(C, None, text_features.mask[0].float(), reg=eps)
    maps[eps] = solved.plan[:, word.first : word.last].mean(1).view(side, side).numpy()
    cost[eps] = float(solved.cost)
fig = plots.reg_sweep(image[0].permute(1, 2, 0).numpy(), word.text, maps, cost)
fig.savefig(figures / "reg_sweep.png", dpi=150)

# %% [markdown]
# ## A score
#
# Over all words of held-out pairs that speak of an object: which share of the word's mass lands in its object's box? The
# box's own share of the image is what an even spread would give. `raw cosine` spreads a word as $\max(0, \cos)$; `softmax of
# cosine` as $e^{\cos/\varepsilon}$, which is the plan with one marginal left free.

# %%
metrics = results.read(run)
fig = plots.grounding(metrics)
fig.savefig(figures / "grounding.png", dpi=150)
print(f"mass on the object over an even spread's: names {metrics['plan_mass_ratio/names']:.2f}, "
      f"colours and sizes {metrics['plan_mass_ratio/attributes']:.2f}")
print(f"heaviest place inside the box: plan {100 * metrics['plan_pointing_accuracy']:.0f} %, "
      f"cosine {100 * metrics['cosine_pointing_accuracy']:.0f} %")

# %% [markdown]
# ## A poisoned pair
#
# What the attacker's caption does on its image: its object word has nowhere to go.

# %%
from datasets import Dataset

manifest = Dataset.from_parquet(str(run / "manifest.parquet"))
row = manifest[0]
image = otclib.data.image_tensor(manifest.select([0]), pixels)
for name, caption in (("own caption", row["original_caption"]), ("planted caption", row["poison_caption"])):
    plan = evaluation.word_maps(network, tokenizer, image, [caption], reg)["plan"][0]
    spans = otclib.models.word_spans(tokenizer, caption)
    maps = np.stack([plan[:, s.first : s.last].mean(1).view(side, side).numpy() for s in spans])
    fig = plots.word_overlays(image[0].permute(1, 2, 0).numpy(), [s.text for s in spans], maps)
    fig.suptitle(f"{name}: “{caption}”", fontsize=9, y=1.06)
    fig.savefig(figures / f"poisoned_{name.split()[0]}.png", dpi=150, bbox_inches="tight")

# %% [markdown]
# ## Summary
#
# - A transport plan is a soft assignment of words to places in which every place and every word is used up.
# - It puts about three times as much of an object name's mass on its object as an even spread would, and more than raw
#   cosine does. A softmax of the cosine, which need not use every place up, does a little better still: in a caption of
#   two words each must cover half of the image, whatever it names.
# - Colours and sizes are *not* found: by the plan and by cosine alike their mass falls beside the object. It is the
#   features that do not know them: few captions name them, and the warm-up shows every image in any hue.
# - `reg` trades sharpness for smoothness; the cost is bounded below by the exact transport cost.
#
# ## Exercises
#
# 1. Take the caption of another image. Which words still find a place?
# 2. Give the text marginal more weight on object words. What happens to the function words?
# 3. Show that for `reg` → ∞ the cost becomes the cosine distance of the two mean tokens.
