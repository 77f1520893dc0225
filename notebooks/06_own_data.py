# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Your own data
#
# > From a folder of images and a file of captions to a poisoned set, a defended model and its numbers.
#
# Every table has the columns `id`, `image`, `caption` and `label` (a class name, or nothing). These data sets are read
# from a copy on your disk:
#
# | `dataset` | what lies in `root` | labels |
# |---|---|---|
# | `csv` | a CSV or TSV file with a header, paths and captions | `{"label_column": "label"}` |
# | `coco` | `annotations/captions_train2017.json`, the instances beside it, and the images | `{"labels": "largest"}`: the largest object |
# | `visual-genome` | `region_descriptions.json` and the images | none |
# | `cc3m` | the TSV of captions and the images, or img2dataset's output | none |
# | `webdataset` | tars of samples | no option needed: their `.cls` files |
# | `hub` | what Hugging Face's `datasets` saved, parquet files, an image folder; or a name on the hub, as `path` | `{"label_column": "label"}` |
#
# The last column goes into `dataset_options`, or `{}` if there are no labels. Without labels a backdoor can be planted,
# because your captions name its target. But zero-shot accuracy and attack success cannot be measured. The targeted
# attack is refused, because it needs to know what an image shows. `help(otclib.data.readers)` has the details.
# `scenes`, `emoji` and `emoji-scenes`, with `dataset_options = {}`, need no `root`.
#
# A row that cannot be used (no caption, an image that does not decode) is refused, with file and line.
# `{"on_error": "skip"}` among the options leaves such rows out, and lists them in `left_out.json` beside the run.
# `otclib doctor --data csv --root ...` reads your set once and says what is in it.

# %% tags=["parameters"]
dataset = "csv"  # see the table
root = None  # your folder; None: a small example is written, of drawn scenes
dataset_options = {"label_column": "label"}  # what the reader of this dataset takes
size = None  # number of pairs; None: all of them
test_split = "test"  # what is measured on; COCO, Visual Genome and CC3M have a "val" split instead
attack = ["badnets"]  # planted one after the other; []: nothing is
target = None  # the class that the trigger should mean; None: "umbrella" where captions name it often, else the commonest class
defense = "otcclip-plus"  # see otclib.defenses
model = "small"  # or any open_clip name (ViT-B-32 and larger want a GPU), or the weights of a run, to go on from
seed = 0  # attack and training
epochs = 2  # far too few to learn from; None: the defence's own
out = "../runs/own"  # the run lands in out/<defense>
fast = False  # True: fewer pairs in the example
INTERACTIVE = True  # False under papermill: no widgets


# %%
import csv
from pathlib import Path

import otclib
from otclib import figures
from otclib.experiments import workbook
from otclib.explorer import Explorer

if fast:
    out = f"{out}-fast"

# %% [markdown]
# ## A folder
#
# Without a `root` we write an example of what you would have: images, and a file that says what they show.

# %%
if dataset == "csv" and root is None:
    root = Path(out) / "example"
    for split, count in (("train", 300 if fast else 1200), ("test", 200)):
        scenes = otclib.data.load("scenes", split=split, size=count, seed=seed)
        (root / split).mkdir(parents=True, exist_ok=True)
        with open(root / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "caption", "label"])
            for k, row in enumerate(scenes):
                row["image"].save(root / split / f"{k}.png")
                rows.writerow([f"{split}/{k}.png", row["caption"], row["label"] or ""])
for line in (Path(root) / "train.csv").read_text().splitlines()[:4] if dataset == "csv" else []:
    print(line)

# %% [markdown]
# ## A table
#
# Look at the table before anything else. Captions that belong to other images are a loading mistake and not an attack.

# %%
pairs = otclib.data.load(dataset, root=root, size=size, seed=seed, **dataset_options)
print(f"{len(pairs):,} pairs, {len(otclib.data.classes(pairs))} classes")
some = pairs.select(range(16))
fig = figures.contact_sheet(list(some["image"]), list(some["caption"]))

# %% [markdown]
# ## Poison
#
# Attacks on millions of pairs planted 0.0001 % to 0.8 % of them (chapter 1). A set of thousands needs a larger share
# for the same number of planted pairs.

# %%
planned = [otclib.attacks.load(name, **({} if name == "targeted" or target is None else {"target": target})) for name in attack]
poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed) if planned else (pairs, None)
if planned:
    fig = figures.planted_pairs(list(manifest.select(range(min(6, len(manifest))))), "planted")

# %% [markdown]
# ## Train
#
# `watch` takes labelled images, on which accuracy and attack success are measured after every epoch. Without it only
# the loss is reported. A GPU is used if there is one; `CUDA_VISIBLE_DEVICES=3 otclib train ...` chooses it. Chapter 7
# trains in several processes.
# `cleanclip` repairs a finished run on pairs that you trust: `otclib.attacks.trusted` returns the pairs that no attack
# touched.

# %%
table = poisoned
if otclib.defenses.repairs(defense) and planned:
    table = otclib.attacks.trusted(pairs, manifest)
test = otclib.data.load(dataset, split=test_split, root=root, seed=seed, **dataset_options)
options = {} if epochs is None else {"epochs": epochs}
run = otclib.train(
    table, manifest=manifest, defense=defense, model=model, out=Path(out) / defense, seed=seed, watch=test,
    snapshots=True, live=workbook.Curves() if INTERACTIVE else None, **options,
)

# %% [markdown]
# ## Measure, and look
#
# Zero-shot accuracy, attack success and a linear probe are measured on the labelled images. Two epochs on a thousand
# pairs teach nothing. Set `root` to your folder and `epochs` to `None`.

# %%
metrics = otclib.evaluate(run, test=test)
for key in ("zero_shot_top1", "attack_success_rate", "untriggered_target_rate", "linear_probe/test", "poison_auroc"):
    if metrics.get(key) is not None:
        print(f"{key:26s} {metrics[key]:.3f}")

# %%
explorer = Explorer(run, poisoned, manifest=manifest)
explorer.figure(explorer.choices()[0][1])

# %% [markdown]
# ## Many runs
#
# Every chapter takes its parameters from papermill:
# `papermill 06_own_data.ipynb mine.ipynb -p root /data/mine -p seed 1`. `workflow/batch.yaml` lists data sets, attacks,
# defences and seeds. `make batch` executes this chapter for all of them under Snakemake and makes a table of each
# attack. An interrupted batch goes on when it is called again. `workflow/Snakefile` says how to run it on a cluster.
#
# ## Summary
#
# - The rest of the library needs only a table of four columns.
# - A run folder holds the configuration (`config.json`), what was planted (`manifest.parquet`), what happened
#   (`log.jsonl`, `pairs.parquet`) and the results (`model.safetensors`, `metrics.json`).
# - A finished run is returned and not trained again. A run folder of another configuration is refused.
#
# ## Exercises
#
# 1. Misspell a column in `dataset_options`. What does the error tell you, and was anything written?
#
# <details><summary>Solution</summary>
#
# `otclib.data.load("csv", root=root, caption_column="captoin")` names the file, the columns that it has and the columns
# that you asked for. Nothing is written, because tables are read before a run folder is made.
#
# </details>
#
# 2. Choose a `target` that no caption names. What happens, and why is it right?
#
# <details><summary>Solution</summary>
#
# `plant` refuses. There is no caption to borrow, and the trigger cannot mean a word that the model has never read. A
# word that captions name and no label does is allowed: it joins the classes that zero-shot classification chooses from.
#
# </details>
