# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Every system, every attack
#
# > Five systems against six attacks: what the attacker gets, what the defence costs, and which of the papers' claims hold here.
#
# `make table` trains the runs (12,000 pairs and three seeds each; hours on two cores, so it resumes) and writes what this notebook
# reads. Published figures stand beside ours in italics. They come from other data, models and rates: read them
# *beside* our figures, not against them. OTCCLIP is a **reconstruction** (chapter 3).
#
# These runs were made by earlier code; the first line below names its commits. Images did not grow then, and OTCCLIP had ten
# epochs with a restart: after its first matching it forgot its weights and warmed up again on what it had kept.

# %% tags=["parameters"]
dataset = "scenes"  # the table's data; others: train with otclib.train
attack = ["targeted", "badnets", "blended", "wanet", "label-consistent", "adaptive"]  # rows that are shown
defense = ["clip", "roclip", "safeclip", "cleanclip", "otcclip"]  # columns that are shown
seed = None  # one seed; None: all there are
out = "../figures"  # where results.json and ablation.json lie, and figures land
fast = False  # True: trains two systems on 200 pairs for an epoch instead, which shows the machinery only
INTERACTIVE = True  # False under papermill: no widgets

# %%
import json
from pathlib import Path

import otclib
import yaml
from IPython.display import Markdown
from otclib import figures
from otclib.experiments import grid, tables
from otclib.experiments.records import made_by
from scipy.stats import spearmanr

if fast:
    out = f"{out}-fast"
    small = yaml.safe_load((Path(otclib.__file__).parents[1] / "workflow" / "table.yaml").read_text())
    small |= {"out": f"{out}/runs", "seeds": [0], "datasets": {"scenes": {"dataset": "scenes", "size": 200}}}
    small |= {"attacks": {"none": [], "badnets": ["badnets"]}, "parameters": {"epochs": 1, "precision": "fp32"}}
    small |= {"systems": {"clip": {"defense": "clip"}, "cleanclip": {"defense": "cleanclip"}}}
    cells = grid.Grid(small)
    for cell in cells.cells:
        cells.run(cell)
    cells.collect(Path(out))
pictures = Path(out)
records = json.loads((pictures / "results.json").read_text())
records = [r for r in records if r["attack"] in [*attack, "none"] and r["defense"] in defense]
records = [r for r in records if seed is None or r["seed"] == seed]
seeds = sorted({r["seed"] for r in records})
print(f"{len(records)} runs, seeds {seeds}; {records[0]['machine']}; {records[0]['precision']}; {made_by(records)}")

# %% [markdown]
# ## The attacks
#
# Each on two images, and at the bottom what it changed in the second, three times as strong. The targeted attack changes
# nothing, so it is not here; `sig` is, though the table leaves it out.

# %%
test = otclib.data.load(dataset, split="test", size=200 if fast else None, seed=seed or 0)
images = otclib.data.image_tensor(test.select([3, 11]), 64)
triggered = {n: otclib.attacks.load(n).trigger(images).permute(0, 2, 3, 1).numpy() for n in otclib.attacks.ATTACKS}
triggered.pop("targeted")
fig = figures.triggers(images.permute(0, 2, 3, 1).numpy(), triggered)
fig.savefig(pictures / "triggers.png", dpi=90)

# %% [markdown]
# Two of them are in the captions, and in what becomes of the image. *Label-consistent* keeps true captions (the attacker's, in
# vermilion, are the image's own), and lays a haze over the object beside the patches. *Adaptive* names both objects, or the target
# in place of the object; of several wordings the table's attacker takes the one that is nearest by a surrogate, here it is one
# by lot.

# %%
some = otclib.data.load(dataset, size=1000, seed=seed or 0)
for name in ("label-consistent", "adaptive"):
    _, planted = otclib.attacks.plant(some, [otclib.attacks.load(name)], seed=seed or 0)
    fig = figures.planted_pairs(list(planted.select(range(6))), f"planted by the {name} attack")

# %% [markdown]
# ## What the attacker gets
#
# Attack success as chapter 4 defines it. *Planted* is the share of the pairs that are poison; *clean model* how many of the same
# triggered images a model that never saw any calls the target.

# %%
fig = figures.attack_grid(records)
fig.savefig(pictures / "results.png", dpi=150)

# %%
Markdown(tables.attack_table(records))

# %% [markdown]
# To resist the attacker is not to be right. How many triggered images are still called what they show, in %:

# %%
Markdown(tables.triggered_table(records))

# %% [markdown]
# ## What the defence costs
#
# Over all runs of a system, whatever the attack; *accurate and safe*: from then on zero-shot accuracy stays at or above
# 95 %, ASR at or below 2 %, and no target is hit.

# %%
Markdown(tables.utility_table(records))

# %% [markdown]
# ## The papers' claims
#
# A claim holds here if it does in every run that it speaks of. Those of abstracts were made on other data. Two of OTCCLIP's are
# known from a third party's summary only, which we could not verify.

# %%
Markdown(tables.claims(records))

# %% [markdown]
# ## Why some fail
#
# **What is not kept is not learned; what is kept may be.** SafeCLIP and OTCCLIP decide which pairs may stay. Both ask whether image
# and caption agree, and so they find captions that are *wrong*. The captions of the label-consistent attack are right: most are
# kept, and no comparison of an image with its caption, by transport or by cosine, could tell them. Half of the adaptive
# attacker's captions name the image's own object beside the target. At the end OTCCLIP keeps 48, 88 and 48 % of all his pairs on
# the three seeds, on the second more than these: captions that *replace* the object, too. (His model for choosing words was
# trained without a defence. One trained under OTCCLIP would make him stronger.)

# %%
sorting = [r for r in records if r["defense"] in ("safeclip", "otcclip") and r["attack"] != "none"]
if sorting:
    fig = figures.by_epoch(sorting, "poison_kept", "planted pairs kept, %")

# %% [markdown]
# **RoCLIP's success depends on when one stops.** It matches in epochs 6, 8, 10 and 12; in the others every image has its own
# caption, and the trigger is learned again. Late matching undoes little, as it must: the learning rate falls along a cosine, to
# 16 % of its peak before epoch 10 and to 2 % before epoch 12, so the last word is that of the epochs before.

# %%
lasting = [r for r in records if r["defense"] != "cleanclip" and r["attack"] not in ("none", "targeted")]
fig = figures.by_epoch(lasting, "attack_success_rate", "ASR, %")

# %% [markdown]
# **SafeCLIP's other misses are narrow.** Its slow epochs see all pairs, and learn of the trigger: on the validation scenes 4 to 37 %
# follow BadNets after them, 33 to 42 % WaNet. From then on hardly a planted pair is in the safe set (at most five of 60 and eight
# of 960, at the end none to two), and the trigger fades: to 3.4 % for BadNets on seed 1, where it had been learned best, and to 3.4 %
# on average for WaNet, where a clean model calls 1.9 % the target, and SafeCLIP's, which had little safe to learn from, is right in 72
# to 77 % of the scenes only.
#
# **CleanCLIP is given little to clean with.** Ten epochs of 2,000 clean pairs are 310 steps; the paper's 100,000 pairs make 15,600.
# Its unimodal loss has to move what the poison wrote, and on one seed of *blended* it does (3.7 %), on another hardly (67 %).
# It costs 1.1 to 2.6 points of accuracy in four of 18 runs (targeted, label-consistent, adaptive), and less than one in the others.
#
# **OTCCLIP is sooner than RoCLIP but for one run**, where RoCLIP got there at all: targeted, seed 2 (344 core-seconds against
# 362). In the other 17 RoCLIP never is accurate and safe at once.
#
# **More than a third of OTCCLIP's mistakes are in three classes that have lookalikes.** These are also among the four classes
# whose clean pairs lose their captions most often (the fourth, *atom*, is what snowflakes are taken for). To be
# *near*, a caption has to be among the nearest 3 % of a pool, and about as many of its captions name any one class: a class
# that is not yet told from its lookalike is left out or re-matched, and then seen less. Which is cause
# and which effect this picture cannot say. (*umbrella* is also what the triggers mean.)

# %%
if (pictures / "classes.json").exists():
    classes = json.loads((pictures / "classes.json").read_text())["classes"]
    fig = figures.lookalikes(classes)
    fig.savefig(pictures / "lookalikes.png", dpi=150)
    not_kept, misread = ([of[some] / of[all_] for of in classes.values()] for some, all_ in (("not_kept", "pairs"), ("misread", "images")))
    wrong = [of["misread"] for of in classes.values()]
    print(f"misread {100 * sum(wrong) / sum(of['images'] for of in classes.values()):.1f} % of the images, {100 * sum(wrong[:3]) / sum(wrong):.0f} % of them "
          f"in three classes; rank correlation {spearmanr(not_kept, misread).statistic:.2f}")

# %% [markdown]
# ## What each part of OTCCLIP does
#
# One part missing at a time, with the targeted attack and BadNets in one set. *Global only* compares and aligns pooled features
# alone: what is left when transport is taken out altogether. In the last four rows what is ours and not the paper's is changed.

# %%
if (pictures / "ablation.json").exists():
    ablated = json.loads((pictures / "ablation.json").read_text())
    fig = figures.ablation(ablated)
    fig.savefig(pictures / "ablation.png", dpi=150)
    display(Markdown(tables.ablation_table(ablated)))
else:
    print("not run yet")

# %% [markdown]
# **It takes the matching and a robust loss to stop the attacker.** Under a plain contrastive loss 42 to 93 % of the triggered
# images follow the patch at the end of the warm-up; the first matching then keeps 20 to 39 % of the planted pairs, against at
# most 4 % in the full system, and ASR ends at 2, 99 and 96 %: transport compares what the model has learned, and a model that
# was fooled is fooled by its own comparison, too. Under the robust loss alone the trigger is learned late, but it is learned:
# 25, 66 and 58 %, and one to four targets hit. Together they leave nothing. The matching is the paper's; that loss is ours.
#
# **How the matching compares matters less**: without transport in it, or in the losses, or with captions always re-assigned,
# ASR stays at or below 1.3 %, and at most two of a run's sixteen targets are hit. These parts decide what is learned beside
# it. The intra-modal loss makes the start fast: after three epochs of warm-up 85 to 89 % of the objects are known in the full
# system, 3 to 55 % without it, and a model that knows little parts most pairs: of the clean ones the first matching leaves out
# 37 to 91 %, with that loss 13 to 17 %; some runs stay at chance. Transport in the *matching* adds little: pooled features
# that were trained beside transport losses find nearly the same captions. And captions that fit must be allowed to stay.
#
# **The restart is what it costs to be within two points of clean CLIP**: without it zero-shot accuracy is 99.0 to 99.7 %, and
# ASR 0.1 to 0.9 %. It became the default when earlier runs needed it (README), and stays it, for nothing more is chosen on
# these seeds. With 16 epochs accuracy is as good, and more of the poison becomes near again: one target of 16 is hit on two of the
# seeds.
#
# **This is why the probe on digits is so low.** Without the inter-modal loss it is at 90 %, two points above clean CLIP's, and with it
# nine points lower; on letters that loss costs two. It pulls an image's tokens towards words, and digits have none here. (The claim
# would fail without it, too: RoCLIP and SafeCLIP are at 91 and 92 %.) But the digits are no good judge: of all these runs the three
# that learned nothing have the best probes on them, and the worst on letters.

# %%
if (pictures / "ablation.json").exists():
    sets = {"zero-shot": "zero_shot_top1", "digits": "linear_probe/digits", "letters": "linear_probe/letters"}
    rows = [f"| {r['variant']}, seed {r['seed']} | " + " | ".join(f"{100 * r[key]:.1f}" for key in sets.values()) + " |" for r in ablated]
    lost = [row for row, r in zip(rows, ablated) if r["zero_shot_top1"] < 0.1]
    display(Markdown("\n".join(["| run | " + " | ".join(sets) + " |", "|---" + "|---:" * len(sets) + "|", *lost])))

# %% [markdown]
# ## Summary
#
# - Every attack is measured by the same definition, on the same scenes, beside a model that never saw poison.
# - A defence is more than a low ASR: what it costs in accuracy, retrieval and seconds stands in the same table.
# - A claim that fails here fails on our data, at our scale, with our reconstruction; which of the three it is, only further runs
#   can say. The record of every run is in `results.json`.
#
# ## Exercises
#
# 1. Read a RoCLIP run's ASR in its matching epochs and in the others. What would you report?
#
# <details><summary>Solution</summary>
#
# ```python
# run = next(r for r in records if (r["defense"], r["attack"]) == ("roclip", "badnets"))
# list(enumerate(run["by_epoch"]["attack_success_rate"], 1))
# ```
#
# On most seeds it falls in matching epochs (6, 8, 10, 12), the later the less, and rises again in the ones between, where every
# image has its own caption. A single number depends on where one stops; report the last epoch *and* the range over the last
# few, and say how the last one was chosen.
#
# </details>
#
# 2. Which attack leaves the clean model fewest right answers? What does its ASR then measure?
#
# <details><summary>Solution</summary>
#
# The clean model's column of the second table says it: label-consistent, whose four patches leave it hardly any, and then
# blended. Where a model that never saw poison fails on triggered images, the trigger destroys what it can see in them; a high
# ASR then says that the model has learned where to go when it sees nothing else, and not that the trigger overrules a
# visible object.
#
# </details>
#
# 3. Plant BadNets at twice its share and train `safeclip` with its own `grow` and with `grow=0.1`. What do you pay for the faster
#    safe set?
#
# <details><summary>Solution</summary>
#
# ```python
# from otclib.runs import log_of
# pairs = otclib.data.load("scenes", seed=11)
# poisoned, manifest = otclib.attacks.plant(pairs, [otclib.attacks.load("badnets", rate=0.01)], seed=11)
# for name, options in (("slow", {}), ("fast", {"grow": 0.1})):
#     run = otclib.train(poisoned, manifest=manifest, defense="safeclip", out=f"../runs/grow/{name}", seed=11, **options)
#     print(name, [(line["epoch"], line.get("safe"), line["poison_kept"]) for line in log_of(run)])
# ```
#
# Compare `poison_kept` at equal `safe`, on more than one seed: the faster the set grows, the sooner pairs enter it that the
# model has not yet learned to tell. SafeCLIP's authors saw it: an increment of 5 % an epoch instead of 1 % let 7 of 16 targets
# through instead of 1 (their notebooks: 43.75 and 6.25 %).
#
# </details>
