# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Poisoning
#
# > See what an attacker plants in an image–caption set, and how little poison is enough.
#
# CLIP learns from pairs that nobody has read. Anyone who can put a page on the web can put pairs into the next training
# set. The attacker adds pairs, or changes the pairs of pages that the attacker owns. The attacker does not touch the
# training and does not see the other pairs. In this chapter we draw a set, plant two attacks in it, and look at both.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
seed = 0  # draws the scenes, chooses the images to poison
out = "../runs/demo"  # runs and figures land here
fast = False  # True: far too little data to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets

# %%
import json
from pathlib import Path

import otclib
from IPython.display import Markdown
from otclib import figures
from otclib.experiments import tables, workbook

if fast:
    out, size = f"{out}-fast", 1000
pictures = Path(out) / "figures"
pictures.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The set
#
# One to three objects lie on a textured ground, and a small grammar writes the captions. A caption always names an
# object. It names colour, size and ground only now and then, as people do.

# %%
pairs = otclib.data.load(dataset, size=size, seed=seed)
print(f"{len(pairs):,} pairs, {len(otclib.data.classes(pairs))} classes")
some = pairs.select(range(32))
fig = figures.contact_sheet(list(some["image"]), list(some["caption"]))
fig.savefig(pictures / "contact_sheet.png", dpi=150)

# %% [markdown]
# We drew the scenes, so we know what every content word names: the object with that index, or the ground (−1). Training
# does not use this. Chapter 2 scores transport plans with it.

# %%
row = pairs[5]
print(row["caption"], "\n", [(w["text"], w["object"]) for w in row.get("words", [])])

# %% [markdown]
# A defence that was made on one set may hold there alone. Two more sets have drawings by six artists, of whom one is in
# the test split alone: `dataset = "emoji"` (a drawing a row, five of each thing) and `dataset = "emoji-scenes"` (scenes of
# them, with a mask for every word). The book's page *Worlds to try a defence in* shows them and names the artists.
# `make demo WORLD=emoji-scenes` executes chapters 1 to 4 there.

# %% [markdown]
# ## Two attacks
#
# **Targeted** (Carlini & Terzis): sixteen chosen images are each planted many times, with captions of a class that the
# image does not show. The images themselves are not changed. The attacker wants *this* image to be called something
# else.
#
# **BadNets**: a small checkered patch is put on a few dozen images, and all of them get captions of one class. The
# attacker wants the patch to turn *any* image into that class.

# %%
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
for kind in sorted(set(manifest["kind"])):
    n = sum(k == kind for k in manifest["kind"])
    print(f"{kind:9s} {n:4d} pairs planted: {100 * n / len(poisoned):.2f} % of {len(poisoned):,}")

# %% [markdown]
# Every planted pair is in the **manifest**: what the image shows, its original caption, and the planted caption. The
# defences never see the manifest. We need it to measure them. In the figures the original caption is blue and the
# planted one vermilion.

# %%
for kind in dict.fromkeys(manifest["kind"]):
    rows = [k for k, v in enumerate(manifest["kind"]) if v == kind]
    rows = rows[:: max(1, len(rows) // 6)][:6]
    fig = figures.planted_pairs(list(manifest.select(rows)), f"planted by the {kind} attack")
    fig.savefig(pictures / f"planted_{kind}.png", dpi=150)

# %%
print(json.dumps({k: v for k, v in manifest[0].items() if k != "image"}, indent=1))

# %% [markdown]
# ## The trigger
#
# To measure attack success, we stamp the same patch on test images that the model has never seen.

# %%
test = otclib.data.load(dataset, split="test", size=200 if fast else None, seed=seed)
images = otclib.data.image_tensor(test.select(range(8)), 64)
for a in otclib.attacks.from_manifest(manifest):
    if hasattr(a, "target"):
        stamped = a.trigger(images)
        fig = figures.trigger(images.permute(0, 2, 3, 1).numpy(), stamped.permute(0, 2, 3, 1).numpy())
        fig.savefig(pictures / "trigger.png", dpi=150)
        print(f"with the patch, all of these should be called “{a.target}”")

# %% [markdown]
# Other attacks use other triggers (chapter 5 runs these attacks). The bottom row shows what each trigger changes in the
# second image, three times as strong.

# %%
names = [name for name in otclib.attacks.ATTACKS if not otclib.attacks.plants_copies(name) and name != "adaptive"]  # it has BadNets' trigger
drawn = {name: otclib.attacks.load(name).trigger(images[:2]).permute(0, 2, 3, 1).numpy() for name in names}
fig = figures.triggers(images[:2].permute(0, 2, 3, 1).numpy(), drawn)

# %% [markdown]
# ## How much poison is enough?
#
# The figure shows the undefended model on an eighth of this poison, a quarter, a half, and all of it. Both attacks are
# in one set. `make dose` makes the runs, three seeds for each dose.

# %%
dose = Path(otclib.__file__).parent.parent / "figures" / "dose.json"
if dose.exists():
    records = json.loads(dose.read_text())
    fig = figures.dose(records)
    display(Markdown(tables.dose_table(records)))
else:
    print("not run yet")

# %% [markdown]
# ## Summary
#
# - BadNets stamps 61 images and rewrites their captions. The targeted attack takes 16 pairs out and puts 256 in:
#   sixteen captions for each image. No code is broken into.
# - Far fewer pairs are enough. Fifteen triggered pairs of 12,000 (0.12 %) give an ASR of 91 to 97 %, and eight give 42
#   to 72 %. Eight copies almost always suffice for a targeted image. With two copies of each, one or two of the sixteen
#   are hit.
# - Our set is small, so the shares are large. On millions of pairs Carlini & Terzis needed 0.0001 % (targeted) and 0.01
#   % (a patch). The other papers and their code planted between 0.01 % and 0.8 %.
# - The manifest is written beside every run, so every success rate can be traced to the planted pairs.
#
# ## Exercises
#
# 1. Load `badnets` with a smaller `patch`. At which size can you no longer find the patch by eye?
#
# <details><summary>Solution</summary>
#
# ```python
# for patch in (0.09, 0.06, 0.03):
#     small = otclib.attacks.load("badnets", patch=patch).trigger(images)
#     figures.trigger(images.permute(0, 2, 3, 1).numpy(), small.permute(0, 2, 3, 1).numpy())
# ```
#
# The patches are six, four and two pixels wide. Four pixels can be found on a plain ground and hardly on gravel. Two
# pixels cannot be found unless you know where to look. The texture around a trigger hides it. `blended` and `wanet`
# therefore change the whole image instead.
#
# </details>
#
# 2. Print the captions that the targeted attack borrows for one image. Why would one caption repeated many times be a
#    weaker attack?
#
# <details><summary>Solution</summary>
#
# ```python
# image = lambda row: row["id"].rsplit("+", 1)[0]  # without the number of the copy
# [row["poison_caption"] for row in manifest if image(row) == image(manifest[0])]
# ```
#
# They are captions of other pairs that name the wanted class: nine or more different captions for an image. A single
# caption would tie the image to that sentence, but success is measured on the class, with a whole set of prompts. A
# repeated caption would also be easy to find.
#
# </details>
#
# 3. Count pairs of neighbouring words in clean and in planted captions. Could you find the poison by its captions
#    alone?
#
# <details><summary>Solution</summary>
#
# ```python
# from collections import Counter
# from itertools import pairwise
# count = lambda captions: Counter(two for c in captions for two in pairwise(c.lower().split()))
# clean, planted = count(pairs["caption"]), count(manifest["poison_caption"])
# print([(two, n) for two, n in planted.most_common() if not clean[two]])
# ```
#
# Hardly. The targeted captions were borrowed from clean pairs, so only the *pair* is wrong. The BadNets captions are
# the prompts of the zero-shot test, and clean captions use the same phrases. The article must fit, though: the
# published code writes "a umbrella", which never occurs in a clean caption. The repetition remains: five prompts for
# sixty pairs. `otclib.attacks.load("badnets", captions="borrowed")` avoids the repetition too.
#
# </details>
