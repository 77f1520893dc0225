# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Attack success
#
# > One definition, two models, one figure and one table: what did the attacker get, and what did the defence cost?
#
# **Backdoor.** Of the triggered test images that do *not* show the target class, the share that zero-shot
# classification (with the prompt ensemble) calls the target. **Targeted.** Of the sixteen planted images, how many are
# called the attacker's class. Images of the target class count nowhere.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip"]  # compared
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # runs are read from out/<defense>, or trained if they are not there
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets

# %%
from pathlib import Path

from datasets import Dataset
from IPython.display import Markdown

import otclib
from otclib import evaluation, plots, results

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
figures = Path(out) / "figures"
figures.mkdir(parents=True, exist_ok=True)
runs = {name: Path(out) / name for name in defense}
if not all((run / "metrics.json").exists() for run in runs.values()):
    pairs = otclib.data.load(dataset, size=size, seed=seed)
    planned = [otclib.attacks.load(name) for name in attack]
    poisoned, manifest = otclib.attacks.plant(pairs, planned, seed=seed)
    otclib.train_each(poisoned, defense, manifest=manifest, model=model, seed=seed, out=out, **options)
manifest = Dataset.from_parquet(str(next(iter(runs.values())) / "manifest.parquet"))

# %% [markdown]
# ## The same images, two models
#
# The sixteen targeted images: what they show, what the attacker wants, what each model says.

# %%
test = otclib.data.load(dataset, split="test", size=200 if fast else None, seed=seed)
classes = otclib.data.classes(test)
said = {}
for name, run in runs.items():
    network, _, tokenizer = otclib.models.load(run / "model.safetensors")
    embeddings = evaluation.class_embeddings(network, tokenizer, classes, otclib.data.templates(test))
    targets = evaluation.Targets.of(manifest, otclib.models.image_size(network))
    if targets:
        said[name] = [classes[k] for k in evaluation.classify(network, targets.images, embeddings)]
if targets:
    lines = ["| shows | attacker wants | " + " | ".join(said) + " |", "|---" * (2 + len(said)) + "|"]
    for k, (source, target) in enumerate(zip(targets.source, targets.target)):
        lines.append(f"| {source} | {target} | " + " | ".join(f"**{s[k]}**" if s[k] == target else s[k] for s in said.values()) + " |")
    display(Markdown("\n".join(lines)))

# %% [markdown]
# Triggered test images: the patch, and what each model says of it.

# %%
images = otclib.data.image_tensor(test.select(range(8)), 64)
for a in otclib.attacks.from_manifest(manifest):
    if not hasattr(a, "target"):
        continue
    stamped = a.trigger(images)
    titles = [[] for _ in images]
    for name, run in runs.items():
        network, _, tokenizer = otclib.models.load(run / "model.safetensors")
        embeddings = evaluation.class_embeddings(network, tokenizer, classes, otclib.data.templates(test))
        for title, k in zip(titles, evaluation.classify(network, stamped, embeddings)):
            title.append(f"{name}: {classes[k]}")
    fig = plots.contact_sheet(list(stamped.permute(0, 2, 3, 1).numpy()), [" ".join(t) for t in titles])
    fig.savefig(figures / "triggered_said.png", dpi=150)

# %% [markdown]
# ## The result

# %%
fig = plots.comparison(results.grouped(runs.values()))
fig.savefig(figures / "comparison.png", dpi=150)

# %%
Markdown(results.table(runs.values()))

# %% [markdown]
# ## Summary
#
# - Undefended, both attacks succeed and zero-shot accuracy shows nothing of it: accuracy is no alarm.
# - OTCCLIP (our reconstruction) takes it away from the attacker. What it pays is in the table: more seconds per epoch,
#   for transport losses and matching, and captions that are found less often (R@1).
# - One seed is an anecdote: `make figures` runs three.
#
# ## Exercises
#
# 1. Report backdoor success with the target class left in. By how much does it change, and in which direction?
# 2. Which of the sixteen images does the undefended model still get right? Is there something about them?
# 3. Raise the BadNets rate until OTCCLIP fails. Where is the edge, and what gives way first?
