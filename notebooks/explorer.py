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
# > Pick an image and a caption, or type one; move a slider; see where the words go, and a poisoned pair fall apart.
#
# Orange marks the chosen word (or place) and its partners. *reg* is the entropic regularisation. With *marginal* at rho, a
# word may keep mass at home, and the light part of its grey bar is what it keeps. *after epoch* walks through the training.
# Every widget is reached by Tab and moved by the arrow keys.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip"]  # whose runs are explored
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
# The same view as a picture for papers and slides (`.svg` and `.pdf` work too), and as one page with working sliders, which
# opens from a disk: here of one pair; without `pairs` it has six, and takes a few minutes.

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
# A click on the picture chooses a word or a place, too.

# %%
if INTERACTIVE:
    display(explorer.show())

# %% [markdown]
# ## Summary
#
# - Two distances of one pair stand side by side: the cosine of the whole, and the cost of carrying word by word.
# - Without a defence a planted caption rises among the nearest by cosine, as the pair is learned by heart (chapter 3 has the
#   curve over all planted pairs); under OTCCLIP many others stay nearer, by both.
#
# ## Exercises
#
# 1. Choose a planted pair and the model `clip`. After which epoch is its planted caption among the five nearest by cosine?
#
# <details><summary>Solution</summary>
#
# Move *after epoch* from left to right and read the rank under the list. Or:
# `[(e, explorer.view(pair, run="clip", epoch=e).ranking["cosine"][0]) for e in explorer.checkpoints["clip"]]`.
#
# </details>
#
# 2. Type a caption that names an object which is not there. Set *marginal* to a small rho. Where does the word's mass go?
#
# <details><summary>Solution</summary>
#
# It stays at home: the dark part of its bar shrinks, for carrying it costs more than the penalty. With the exact marginal it
# is spread over the places that it dislikes least.
#
# </details>
