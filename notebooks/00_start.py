# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here
#
# > Poison a training set, train a CLIP model on it, watch the poison being learned, and look inside: in a few minutes.
#
# CLIP models learn from image–caption pairs crawled from the web. A handful of planted pairs can make one image, or every
# image with a small patch, mean what an attacker wants. **OTCCLIP** defends: it compares the *patches* of an image with the
# *words* of a caption by optimal transport, and an image whose caption does not fit is left out, or given another one that
# does. This page shows the attack. The chapters show the rest:
#
# | | chapter | |
# |---|---|---|
# | 1 | [Poisoning](01_poisoning.ipynb) | what an attacker plants, and how little |
# | 2 | [Transport plans](02_transport_plans.ipynb) | from 3 × 3 by hand to a caption on its image |
# | 3 | [Training with a defence](03_defense_training.ipynb) | who is given which caption, and what comes apart when |
# | 4 | [Attack success](04_attack_success.ipynb) | one definition, two models, one table |
# | 5 | [Every system, every attack](05_all_systems.ipynb) | beside the papers, with the claims that hold and those that do not |
# | 6 | [Your own data](06_own_data.ipynb) | COCO, Visual Genome, CC3M, a CSV file; and many runs |
# | | [The explorer](explorer.ipynb) | transport plans to play with |
#
# Every chapter stands alone and trains what it lacks (chapters 2 to 4 and the explorer share two runs, of four to eight minutes
# on two cores). Open it, and choose *Run All*.
#
# You should have met CLIP and a little PyTorch. What we count, in one line each:
#
# | | |
# |---|---|
# | zero-shot accuracy | share of test images whose nearest class name (averaged over prompts, "a photo of a …") is the right one |
# | ASR | attack success rate: share of triggered test images that are called the attacker's class (chapter 4) |
# | targets hit | how many of the sixteen targeted images are called what the attacker wants |
# | R@1 | recall at 1: for how many of 1,000 held-out images (captions) the nearest caption (image) is their own, or one of the same words |
# | linear probe | accuracy of a logistic regression on the frozen image features |
# | poison AUROC | how often a planted pair's distance (as the system itself measures it) is larger than a clean pair's; 0.5 is chance |
# | mass on object / chance | how much of an object word's mass a plan puts into the object's box, over what an even spread would (chapter 2) |
# | pointing | for how many such words the heaviest place lies in the box |
# | backdoor z-score | by how many standard deviations triggered images lie closer together than images do (Carlini & Terzis) |

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = "clip"  # undefended; any other takes longer
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/start"  # the run lands in out/<defense>; a finished one is not trained again
epochs = 8  # about 15 seconds each on two cores; half a minute each on an old laptop
fast = False  # True: too little to learn from, but done in seconds
INTERACTIVE = True  # False under papermill: no widgets

# %%
from pathlib import Path

import otclib
from otclib import figures
from otclib.experiments import workbook
from otclib.runs import log_of, metrics_of
from otclib.explorer import Explorer

if fast:
    out, size, epochs = f"{out}-fast", 1000, 1

# %% [markdown]
# ## 1. A set, and poison in it
#
# Scenes of glyphs, drawn on the spot, with captions from a small grammar. Into them an attacker plants pairs: a checkered
# patch with captions of one class (BadNets), and sixteen images with captions of a class that they do not show (targeted).
# He can put pages on the web that the crawler will find. He does not see the other pairs, touches no code, and cannot choose
# how the model is trained.

# %%
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
print(f"{len(poisoned):,} pairs, {len(manifest)} of them planted")
some = poisoned.select(range(16))
fig = figures.contact_sheet(list(some["image"]), list(some["caption"]))

# %%
kinds = manifest["kind"][:]
rows = [k for kind in dict.fromkeys(kinds) for k in [k for k, v in enumerate(kinds) if v == kind][:: max(1, kinds.count(kind) // 3)][:3]]
fig = figures.planted_pairs(list(manifest.select(rows)), "planted: what the image was called (blue), and what the attacker calls it")

# %% [markdown]
# ## 2. Train on it, undefended
#
# Zero-shot accuracy rises as it should, to above 99 %, and gives nothing away. The two other curves do. (Stop whenever you like: run the cell again, and it goes on where
# it was.)

# %%
runs = workbook.runs(poisoned, manifest, [defense], model=model, seed=seed, out=out, epochs=epochs, watched=INTERACTIVE, retell=True)
run = runs[defense]
if not INTERACTIVE:
    fig = figures.learning_curves({defense: log_of(run)})

# %%
metrics = metrics_of(run)
print(f"zero-shot accuracy {100 * metrics['zero_shot_top1']:.1f} %")
print(f"with the patch, {100 * metrics['attack_success_rate']:.1f} % of the images are called what the attacker wants")
print(f"{metrics['targets_hit']} of {metrics['targets']} targeted images are called what the attacker wants")

# %% [markdown]
# ## 3. Look inside
#
# A planted pair under this model: where its words go on the image, and which captions are nearer. By the cosine of the whole,
# which is what it was trained with, the attacker's caption is among the nearest: move *after epoch* in the explorer below and
# see it rise. Word by word no caption was ever compared with an image, and so by transport the attacker's and the true one are
# both far, and what is near is half chance. OTCCLIP trains the words, too, and parts the pairs *before* they are learned
# (chapter 3).

# %%
explorer = Explorer(runs, poisoned, manifest=manifest)
pair = explorer.choices()[0][1]
for name, caption in zip(("planted", "own"), explorer.own_captions(pair)):
    view = explorer.view(pair, caption)
    ranks = ", ".join(f"number {rank} by {by}" for by, (rank, _) in view.ranking.items())
    print(f"{name:8s} “{caption}”: of {view.pool + 1} captions {ranks}")
explorer.figure(pair)

# %%
if INTERACTIVE:
    display(explorer.show())

# %% [markdown]
# ## Summary
#
# - Some three hundred planted pairs of twelve thousand are enough to own a model trained on them, and its accuracy alone does
#   not give it away.
# - A transport plan shows where the words of a caption go; image and caption can be near as wholes and far word by word.
#
# Go on with [chapter 1](01_poisoning.ipynb).
#
# ## Exercises
#
# 1. Which is learned first, the trigger or the objects? Look at the curves before you guess.
#
# <details><summary>Solution</summary>
#
# The objects, then the trigger about an epoch later, and the targeted images one by one, from the second epoch to about the
# seventh: every object is named in hundreds of pairs, the patch in 61, each targeted image in 16. A defence has to use this
# window (chapter 3).
#
# </details>
#
# 2. Set `defense = "otcclip"` and run the page again. Which curves change?
#
# <details><summary>Solution</summary>
#
# ASR and targets stay near zero, and accuracy ends where it did (chapter 3 says why).
#
# </details>
