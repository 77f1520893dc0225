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
# > One definition, three models, one figure and one table: what did the attacker get, and what did the defence cost?
#
# **Backdoor.** We take the triggered test images that do *not* show the target class. The attack success rate (ASR) is
# the share of them that zero-shot classification (with the prompt ensemble) calls the target. **Targeted.** Of the
# sixteen planted images, we count how many are called the attacker's class. Images of the target class are not counted.
#
# What follows is one seed on scenes of glyphs. The book's page *Three worlds* (`book/results/worlds.md`) has drawings by
# other artists, three seeds, and an earlier OTCCLIP that held on glyphs and failed there.

# %% tags=["parameters"]
dataset = "scenes"  # an image-caption table, see otclib.data.load
size = None  # number of pairs; None: all of them
attack = ["targeted", "badnets"]  # planted one after the other
defense = ["clip", "otcclip", "otcclip-plus"]  # compared
model = "small"  # or any open_clip name
seed = 0  # data, attack and training
out = "../runs/demo"  # runs are read from out/<defense>, or trained if they are not there
fast = False  # True: too little to learn from, but done in a minute
INTERACTIVE = True  # False under papermill: no widgets

# %%
from pathlib import Path

import torch
from IPython.display import Markdown

import otclib
from otclib import evaluation, figures
from otclib.defenses import look
from otclib.experiments import records, workbook
from otclib.explorer import Explorer

options = {}
if fast:
    out, size, options = f"{out}-fast", 1000, {"epochs": 2}
pictures = Path(out) / "figures"
pictures.mkdir(parents=True, exist_ok=True)
pairs, poisoned, manifest = workbook.poisoned(dataset, attack, seed=seed, size=size)
runs = workbook.runs(poisoned, manifest, defense, model=model, seed=seed, out=out, watched=INTERACTIVE, **options)

# %% [markdown]
# ## The same images, three models
#
# The table lists the sixteen targeted images: what they show, what the attacker wants, and what each model calls them.

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
# Here is one planted pair, as the models read it: the captions of a pool that are nearest to its image. The undefended
# model has learned the attacker's class. `otcclip-plus` finds captions of what the image shows, and the planted caption
# is far down its list. We chose this pair because its object is easy to see.

# %%
explorer = Explorer(runs, poisoned, manifest=manifest)
pair = explorer.choices()[min(7, len(explorer.planted) - 1)][1]
planted, own = explorer.own_captions(pair)
views = {name: explorer.view(pair, planted, run=name) for name in runs}
nearest = {look(name).label: view.ranking["cosine"] for name, view in views.items()}
view = next(iter(views.values()))
fig = figures.planted_caption(view.image, planted, own, nearest, view.pool + 1)
fig.savefig(pictures / "planted_two_models.png", dpi=150)

# %% [markdown]
# These test images carry the trigger. Below each image stands what each model calls it. Resisting the attack is not the
# same as answering correctly: a model that does not follow the patch can still be confused by it.

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
    fig = figures.contact_sheet(list(stamped.permute(0, 2, 3, 1).numpy()), [" ".join(t) for t in titles])
    fig.savefig(pictures / "triggered_said.png", dpi=150)

# %% [markdown]
# ## The result

# %%
fig = figures.comparison(records.grouped(runs.values()))
fig.savefig(pictures / "comparison.png", dpi=150)

# %%
Markdown(records.table(runs.values()))

# %% [markdown]
# ## Summary
#
# - Undefended, both attacks succeed. Zero-shot accuracy stays above 99 %, so accuracy alone raises no alarm.
# - What the abstract says, `otcclip`, weakens both attacks here and stops neither. With ours, `otcclip-plus`, no
#   targeted image is hit, and few triggered images follow the patch. There are four times as many of them in this set
#   as the attack needs.
# - The table shows the cost: more seconds per epoch (and 12 epochs instead of 8), and a little accuracy.
# - Not to call an image what the attacker wants is not to call it what it shows. Many triggered images are still
#   misread. Much of this is occlusion by the patch: a model that never saw poison misreads 37 to 73 % of them and calls
#   0.1 % the target (chapter 5, three seeds).
# - This is one seed, in one world. `make figures` runs three seeds, `make worlds` other worlds.
#
# ## Exercises
#
# 1. Report backdoor success with the target class left in. By how much does it change, and in which direction?
#
# <details><summary>Solution</summary>
#
# ```python
# a = next(a for a in otclib.attacks.from_manifest(manifest) if hasattr(a, "target"))
# labelled = test.filter(lambda label: label is not None, input_columns="label")
# triggered = a.trigger(otclib.data.image_tensor(labelled, otclib.models.resize(network)))
# predicted = evaluation.classify(network, triggered, embeddings)
# true, target = torch.tensor([classes.index(label) for label in labelled["label"]]), classes.index(a.target)
# print(float((predicted == target).float().mean()), evaluation.success_rate(predicted, true, target))
# ```
#
# Images of the target class are called the target without any attack. Leaving them in therefore *raises* the rate of a
# model that resists, by at most the target's share of the images: one in 42, or 2.4 %. On a model that follows the
# attacker it changes next to nothing.
#
# </details>
#
# 2. Which of the sixteen images does the undefended model still get right? Do they have something in common?
#
# <details><summary>Solution</summary>
#
# Read the table above. The attacker's hits are in bold. An answer that is neither bold nor what the image shows is a
# plain mistake. `targets_right` in `metrics.json` counts the right answers. There are none, or one. With sixteen images
# and so few exceptions, do not conclude that there is a pattern. Train another seed (`-p seed 1`) and see whether the
# exception returns.
#
# </details>
#
# 3. Raise the BadNets rate until `otcclip-plus` fails. At which rate does that happen, and which part fails first?
#
# <details><summary>Solution</summary>
#
# Give `out` another name, poison with `[otclib.attacks.load("targeted"), otclib.attacks.load("badnets", rate=0.0075)]`,
# and train as in chapter 3. Then try the next rate. In the log, follow `attack_success_rate` over the warm-up and
# `poison_kept` after it. What the warm-up has learned of the trigger decides which planted pairs the first matching
# keeps, and the model learns the trigger from these pairs.
#
# </details>
