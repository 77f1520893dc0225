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
# > Five systems against six attacks: what the attacker gets, what the defence costs, and which of the papers' claims
# > hold here.
#
# `make table` trains the runs: 12,000 pairs and three seeds each. It takes hours on two cores, and it resumes when it
# is interrupted. This notebook reads the records. Published figures stand beside ours in italics. They come from other
# data, models and rates, so they are context and not a comparison. OTCCLIP is a **reconstruction** (chapter 3).
#
# These runs were made by earlier code. The first line below names its commits. In that code images did not grow, and
# OTCCLIP was another system than today's two: the abstract's parts with a robust loss, strong views, and a restart.
# After its first matching the model forgot its weights and warmed up again on the pairs that were kept.

# %% tags=["parameters"]
dataset = "scenes"  # the table's data; others: train with otclib.train
attack = ["targeted", "badnets", "blended", "wanet", "label-consistent", "adaptive"]  # rows that are shown
defense = ["clip", "roclip", "safeclip", "cleanclip", "earlier OTCCLIP"]  # columns that are shown
seed = None  # one seed; None: all that the records have
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
# Each trigger is shown on two images. The bottom row shows what it changes in the second image, three times as strong.
# Targeted attacks change no image, so they are not shown. `sig` is shown, although the table leaves it out.

# %%
test = otclib.data.load(dataset, split="test", size=200 if fast else None, seed=seed or 0)
images = otclib.data.image_tensor(test.select([3, 11]), 64)
triggered = {n: otclib.attacks.load(n).trigger(images).permute(0, 2, 3, 1).numpy() for n in otclib.attacks.ATTACKS if not otclib.attacks.plants_copies(n)}
fig = figures.triggers(images.permute(0, 2, 3, 1).numpy(), triggered)
fig.savefig(pictures / "triggers.png", dpi=90)

# %% [markdown]
# Two attacks are in the captions as well. *Label-consistent* keeps true captions: the attacker's captions, in
# vermilion, are the image's own. It also lays a haze over the object, beside the patches. *Adaptive* names both
# objects, or the target in place of the object. In the table's runs the attacker tries several wordings and takes the
# one that is nearest to the image under a surrogate model. In this cell the wording is chosen at random.

# %%
some = otclib.data.load(dataset, size=1000, seed=seed or 0)
for name in ("label-consistent", "adaptive"):
    _, planted = otclib.attacks.plant(some, [otclib.attacks.load(name)], seed=seed or 0)
    fig = figures.planted_pairs(list(planted.select(range(6))), f"planted by the {name} attack")

# %% [markdown]
# ## What the attacker gets
#
# Attack success is defined as in chapter 4. *Planted* is the share of the pairs that are poison. *Clean model* is what
# a model that never saw poison calls the target, on the same triggered images.

# %%
fig = figures.attack_grid(records)
fig.savefig(pictures / "results.png", dpi=150)

# %%
Markdown(tables.attack_table(records))

# %% [markdown]
# Resisting the attack is not the same as answering correctly. The next table shows the share of triggered images that
# are still called what they show, in %:

# %%
Markdown(tables.triggered_table(records))

# %% [markdown]
# ## What the defence costs
#
# The table covers all runs of a system, whatever the attack. *Accurate and safe*: from then on zero-shot accuracy stays
# at or above 95 %, ASR stays at or below 2 %, and no target is hit.

# %%
Markdown(tables.utility_table(records))

# %% [markdown]
# ## The papers' claims
#
# A claim holds in a seed if it holds in every run of that seed. The claims of the abstracts were made on other data.
# Two claims about OTCCLIP are known only from a third party's summary, which we could not verify.

# %%
Markdown(tables.claims(records))

# %% [markdown]
# ## Why some claims fail
#
# **A defence that compares image and caption keeps true captions.** SafeCLIP and OTCCLIP decide which pairs are kept. A
# pair that is not kept is not learned. Both ask whether image and caption agree, so they find captions that are
# *wrong*. The captions of the label-consistent attack are right, so most of its pairs are kept. No comparison of an
# image with its caption, by transport or by cosine, could find them.
#
# Half of the adaptive attacker's captions name the image's own object beside the target. At the end OTCCLIP keeps 48,
# 88 and 48 % of all adaptive pairs on the three seeds. On the second seed it keeps more than this half: captions that
# *replace* the object, too. (The attacker's surrogate, which chooses the words, was trained without a defence. A
# surrogate trained under OTCCLIP would be stronger.)

# %%
sorting = [r for r in records if r["defense"] in ("safeclip", "earlier OTCCLIP") and r["attack"] != "none"]
if sorting:
    fig = figures.by_epoch(sorting, "poison_kept", "planted pairs kept, %")

# %% [markdown]
# **RoCLIP's result depends on the epoch at which training stops.** It matches in epochs 6, 8, 10 and 12. In the other
# epochs every image has its own caption, and the model learns the trigger again. Late matching undoes little, because
# the learning rate falls along a cosine: to 16 % of its peak before epoch 10, and to 2 % before epoch 12. So the epochs
# before decide the result.

# %%
lasting = [r for r in records if r["defense"] != "cleanclip" and r["attack"] not in ("none", "targeted")]
fig = figures.by_epoch(lasting, "attack_success_rate", "ASR, %")

# %% [markdown]
# **SafeCLIP misses the other claims narrowly.** Its slow epochs see all pairs and learn part of the trigger. After
# them, 4 to 37 % of the triggered validation scenes follow BadNets, and 33 to 42 % follow WaNet. From then on hardly a
# planted pair is in the safe set: at most five of 60 and eight of 960, and none to two at the end. So the trigger
# fades. It fades to 3.4 % for BadNets on seed 1, where it had been learned best. For WaNet it fades to 3.4 % on
# average, and a clean model calls 1.9 % the target. Under WaNet SafeCLIP had few safe pairs to learn from, and it is
# right in only 72 to 77 % of the scenes.
#
# **CleanCLIP gets little data to clean with.** Ten epochs of 2,000 clean pairs are 310 steps. The paper's 100,000 pairs
# make 15,600. The unimodal loss has to undo what the poison taught. On one seed of *blended* it does (3.7 %), and on
# another it hardly does (67 %). CleanCLIP costs 1.1 to 2.6 points of accuracy in four of 18 runs (targeted,
# label-consistent, adaptive), and less than one point in the others.
#
# **OTCCLIP is accurate and safe sooner than RoCLIP, except in one run.** That is the only run in which RoCLIP gets
# there at all: targeted, seed 2 (344 core-seconds against 362). In its other 17 runs RoCLIP is never accurate and safe
# at once.
#
# **More than a third of OTCCLIP's mistakes are in three classes that have lookalikes.** These three are also among the
# four classes whose clean pairs are most often not kept. (The fourth is *atom*: snowflakes are mistaken for it.) To be
# *near*, a caption must be among the nearest 3 % of a pool, and about as many of the pool's captions name any one
# class. So a class that the model does not yet tell from its lookalike is left out or re-matched, and the model then
# sees it less. This figure cannot say which is the cause and which is the effect. (*umbrella* is also the target of the
# triggers.)

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
# One part is missing at a time. The targeted attack and BadNets are in one set. *Global only* compares and aligns
# pooled features alone, so it lacks everything that is transport. The last four rows change parts that are ours and not
# the paper's.

# %%
if (pictures / "ablation.json").exists():
    ablated = json.loads((pictures / "ablation.json").read_text())
    fig = figures.ablation(ablated)
    fig.savefig(pictures / "ablation.png", dpi=150)
    display(Markdown(tables.ablation_table(ablated)))
else:
    print("not run yet")

# %% [markdown]
# **The matching and the robust loss together stop the attacker.** The matching is the paper's, and the robust loss is
# ours.
#
# - *Without the robust loss* 42 to 93 % of the triggered images follow the patch at the end of the warm-up. The first
#   matching then keeps 20 to 39 % of the planted pairs (at most 4 % in the full system), and ASR ends at 2, 99 and 96
#   %. The matching compares what the model has learned, so a model that has learned the trigger keeps the triggered
#   pairs.
# - *With the robust loss alone* the model learns the trigger late, but it learns it. ASR ends at 25, 66 and 58 %, and
#   one to four targets are hit.
# - *With both* almost nothing is left.
#
# **How the matching compares matters less.** We removed transport from the matching or from the losses, or always
# re-assigned the captions. In all of these runs ASR stays at or below 1.3 %, and at most two of sixteen targets are
# hit. These parts decide what else is learned.
#
# - *The intra-modal loss makes the start fast.* After three epochs of warm-up the full system knows 85 to 89 % of the
#   objects. Without this loss the model knows 3 to 55 %. It then finds most pairs far: the first matching leaves out 37
#   to 91 % of the clean pairs, and 13 to 17 % with that loss. Some runs stay at chance.
# - *Transport in the matching adds little.* Pooled features that were trained beside transport losses find nearly the
#   same captions.
# - *A caption that fits must stay.* Re-assigning every caption costs more than half of the accuracy.
#
# **The restart costs 0.9 to 3.7 points of accuracy.** Without it zero-shot accuracy is 99.0 to 99.7 %, which is within
# two points of clean CLIP. ASR is then 0.1 to 0.9 %. The restart was the default of the earlier code, because earlier
# runs needed it. Today's systems have none.
#
# **Longer training readmits poison.** With 16 epochs accuracy is 99.4 %, but more planted pairs become near again. One
# target of 16 is hit on two of the seeds.
#
# **The inter-modal loss lowers the probe on digits.** Without it the probe is at 90 %, two points above clean CLIP's.
# With it the probe is nine points lower. On letters the loss costs two points. The loss pulls an image's tokens towards
# words, and the digits have no words here. (The claim about digits would fail without this loss too, because RoCLIP and
# SafeCLIP are at 91 and 92 %.) But the digits are a poor measure: of all these runs, the three that learned nothing
# have the best probes on digits and the worst on letters:

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
# - A low ASR is not all that a defence is judged by. The same table shows what it costs in accuracy, retrieval and
#   seconds.
# - A claim that fails here can fail because of our data, our scale or our reconstruction. Only further runs can say
#   which. The record of every run is in `results.json`.
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
# On most seeds ASR falls in matching epochs (6, 8, 10, 12), and it falls less in later ones. It rises again in the
# epochs between, where every image has its own caption. So a single number depends on where training stops. Report the
# last epoch *and* the range over the last few epochs, and say how the last one was chosen.
#
# </details>
#
# 2. Which attack leaves the clean model the fewest right answers? What does its ASR then measure?
#
# <details><summary>Solution</summary>
#
# The clean model's column of the second table shows it: label-consistent, whose four patches leave hardly any right
# answers, and then blended. If a model that never saw poison fails on triggered images, the trigger hides what they
# show. A high ASR then says that the model names the target when it sees nothing else. It does not say that the trigger
# overrules a visible object.
#
# </details>
#
# 3. Plant BadNets at twice its share, and train `safeclip` with its own `grow` and with `grow=0.1`. What does the
#    faster safe set cost?
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
# Compare `poison_kept` at equal `safe`, on more than one seed. The faster the set grows, the sooner it takes in pairs
# that the model cannot yet tell apart. SafeCLIP's authors saw this: an increment of 5 % an epoch instead of 1 % let 7
# of 16 targets through instead of 1 (their notebooks: 43.75 and 6.25 %).
#
# </details>
