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
# > Poison a training set, train a CLIP model on it, watch how the model learns the poison, and look inside: in a few
# > minutes.
#
# CLIP models learn from image–caption pairs crawled from the web. A handful of planted pairs can make one image, or
# every image with a small patch, mean what an attacker wants. **OTCCLIP** is a defence. It compares the *patches* of an
# image with the *words* of its caption by optimal transport. In our reconstruction an image whose caption does not fit
# is left out, or re-matched with a caption that fits. This page shows the attack. The chapters show the rest:
#
# | | chapter | |
# |---|---|---|
# | 1 | [Poisoning](01_poisoning.ipynb) | what an attacker plants, and how little is enough |
# | 2 | [Transport plans](02_transport_plans.ipynb) | from 3 × 3 by hand to a caption on its image |
# | 3 | [Training with a defence](03_defense_training.ipynb) | which image is given which caption, and when clean and planted pairs separate |
# | 4 | [Attack success](04_attack_success.ipynb) | one definition, three models, one table |
# | 5 | [Every system, every attack](05_all_systems.ipynb) | our results beside the papers', with the claims that hold and those that do not |
# | 6 | [Your own data](06_own_data.ipynb) | COCO, Visual Genome, CC3M, a CSV file; many runs |
# | 7 | [From the laptop to the cluster](07_laptop_to_cluster.ipynb) | one run in several processes, killed and resumed, and a sweep, by parameters alone |
# | | [The explorer](explorer.ipynb) | transport plans with sliders |
#
# Every chapter runs alone and trains what it lacks. Chapters 2 to 4 and the explorer share three runs, which take six
# to twelve minutes on two cores. Open a chapter and choose *Run All*.
#
# You need a first idea of CLIP and of PyTorch. These are the numbers that we report:
#
# | | |
# |---|---|
# | zero-shot accuracy | share of test images whose nearest class name (averaged over prompts, "a photo of a …") is the right one |
# | ASR | attack success rate: share of triggered test images that are called the attacker's class (chapter 4) |
# | targets hit | how many of the sixteen targeted images are called what the attacker wants |
# | R@1 | recall at 1: share of 1,000 held-out images (captions) whose nearest caption (image) is their own, or one with the same words |
# | linear probe | accuracy of a logistic regression on the frozen image features |
# | poison AUROC | how often a planted pair has a larger distance than a clean pair; each system uses its own distance; 0.5 is chance |
# | mass on object / chance | share of an object word's mass that a plan puts into the object's box, divided by the share that an even spread would put there (chapter 2) |
# | pointing | share of such words whose heaviest place lies in the box |
# | backdoor z-score | by how many standard deviations triggered images lie closer together than other images do (Carlini & Terzis) |

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
# The images are scenes of glyphs, drawn on the spot. Their captions come from a small grammar. An attacker plants pairs
# in this set in two ways. BadNets puts a checkered patch on images and gives them captions of one class. The targeted
# attack gives sixteen images captions of a class that they do not show. The attacker can put pages on the web that the
# crawler will find. The attacker does not see the other pairs, does not touch the code, and cannot choose how the model
# is trained.

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
# Zero-shot accuracy rises above 99 %, as it should, and shows no sign of the attack. The two other curves show it. You
# can stop at any time. Run the cell again, and training goes on where it was.

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
# We look at a planted pair under this model: where its words go on the image, and which captions are nearer. The model
# was trained with the cosine of the pooled features. By this cosine the attacker's caption is among the nearest
# captions. Move *after epoch* in the explorer below and see its rank improve. This training never compared single words
# with an image. So by transport the attacker's caption and the image's own are both far, and the nearest captions are
# partly random. OTCCLIP trains the word tokens too, and it separates the pairs *before* the model has learned them
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
# - About three hundred planted pairs in twelve thousand are enough to control what a model says. Its accuracy alone
#   does not show the attack.
# - A transport plan shows where the words of a caption go. Image and caption can be near by pooled features and far by
#   their tokens.
#
# Go on with [chapter 1](01_poisoning.ipynb).
#
# ## Exercises
#
# 1. Which is learned first, the trigger or the objects? Look at the curves before you guess.
#
# <details><summary>Solution</summary>
#
# The objects are learned first, and the trigger about an epoch later. The targeted images are learned one by one, from
# the second epoch to about the seventh. The reason is frequency: every object is named in hundreds of pairs, the patch
# is in 61, and each targeted image is in 16. A defence has to use this time window (chapter 3).
#
# </details>
#
# 2. Set `defense = "otcclip-plus"` and run the page again. Which curves change?
#
# <details><summary>Solution</summary>
#
# ASR and targets hit stay near zero (chapter 3 explains the training). Its own number of epochs is 12: set `epochs =
# 12`, too.
#
# </details>
