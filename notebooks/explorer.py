# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The transport explorer
#
# > Pick an image and a caption, or type one; move a slider; see where the words go, and how a planted pair stops
# > fitting.
#
# Orange marks the chosen word (or place) and its partners. *reg* is the entropic regularisation. With *marginal* at
# rho, a word may leave a part of its mass unmoved. The light part of its grey bar is this part. *after epoch* moves
# through the training. Tab reaches every widget, and the arrow keys move it.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip", "otcclip-plus"]  # whose runs are explored
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # runs are read from out/<defense>, or trained into it
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets

# %%
from pathlib import Path

from otclib.experiments import workbook
from otclib.explorer import Explorer

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, **options)
explorer = Explorer(runs, poisoned, manifest=manifest)

# %% [markdown]
# ## For readers without a kernel
#
# The next cell writes the same view as a picture for papers and slides (`.svg` and `.pdf` work too). It also writes one
# page with working sliders that opens from a disk. Here the page has one pair. Without `pairs` it has six, and writing
# it takes a few minutes.

# %%
pictures = Path(out) / "figures"
pictures.mkdir(parents=True, exist_ok=True)
pair = explorer.choices()[0][1]
fig = explorer.figure(pair, run=defense[-1])
fig.savefig(pictures / "explorer.pdf")
page = explorer.save_html(pictures / "explorer.html", [pair], progress=INTERACTIVE)
print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")
fig

# %% [markdown]
# ## With a kernel
#
# You can also click on the picture to choose a word or a place.

# %%
if INTERACTIVE:
    display(explorer.show())

# %% [markdown]
# ## Summary
#
# - The explorer shows two distances of one pair side by side: the cosine of the pooled features, and the cost of
#   carrying the words one by one.
# - Without a defence a planted caption becomes one of the nearest by cosine, because the model memorises the pair
#   (chapter 3 has the curve over all planted pairs). Under OTCCLIP many other captions stay nearer, by both distances.
#
# ## Exercises
#
# 1. Choose a planted pair and the model `clip`. After which epoch is its planted caption among the five nearest by
#    cosine?
#
# <details><summary>Solution</summary>
#
# Move *after epoch* from left to right and read the rank under the list. Or:
# `[(e, explorer.view(pair, run="clip", epoch=e).ranking["cosine"][0]) for e in explorer.checkpoints["clip"]]`.
#
# </details>
#
# 2. Type a caption that names an object which is not there. Set *marginal* to a small rho. Where does the word's mass
#    go?
#
# <details><summary>Solution</summary>
#
# It is not moved: the dark part of the word's bar shrinks, because carrying the mass costs more than the penalty. With
# the exact marginal the mass is spread over the least expensive places.
#
# </details>
