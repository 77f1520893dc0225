"""The defences, each held against an independent statement of the same thing, and run on a few pairs."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors import safe_open

import otclib
from otclib import defenses, losses
from otclib.defenses import safeclip
from otclib.defenses.bank import Bank
from otclib.defenses.dao import dao
from otclib.runs import config_of, log_of, write_json
from otclib.training import journal

SHORT = {
    "roclip": {"every": 2, "first": 0},
    "safeclip": {"warmup": 1, "slow_epochs": 1, "grow": 0.5},
    "dao": {"detect": 2, "k": 4, "references": 100},
    "par": {},
}


def short(name, runs):
    """Options of a short run; a repair goes on from that of clip."""
    return SHORT[name] | ({"model": runs["clip"] / "model.safetensors"} if defenses.repairs(name) else {})


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# -- the safe set ----------------------------------------------------------------------------------------------------


def expectation_maximisation(x, steps=500):
    """A mixture of two Gaussians by hand: posterior of the one with the larger mean."""
    mean, var, weight = np.quantile(x, [0.1, 0.9]), np.full(2, x.var()), np.full(2, 0.5)
    for _ in range(steps):
        density = weight * np.exp(-((x[:, None] - mean) ** 2) / (2 * var)) / np.sqrt(2 * np.pi * var)
        r = density / density.sum(1, keepdims=True)
        weight = r.mean(0)
        mean = (r * x[:, None]).sum(0) / r.sum(0)
        var = (r * (x[:, None] - mean) ** 2).sum(0) / r.sum(0)
    return r[:, mean.argmax()]


def test_the_safe_set_is_that_of_a_mixture_fitted_by_hand():
    rng = np.random.default_rng(0)
    similarity = np.concatenate([rng.normal(0.1, 0.05, 300), rng.normal(0.5, 0.1, 700)])
    p = safeclip.posterior(similarity)
    by_hand = expectation_maximisation(similarity)
    assert np.abs(p - by_hand).max() < 0.02
    assert ((p >= 0.9) == (by_hand >= 0.9)).mean() > 0.995
    assert (p[:300] > 0.5).mean() < 0.05 and (p[300:] > 0.5).mean() > 0.9


def test_the_posterior_needs_something_to_fit():
    with pytest.raises(ValueError, match="at least 2 finite"):
        safeclip.posterior(np.array([0.5]))
    with pytest.raises(ValueError, match="at least 2 finite"):
        safeclip.posterior(np.array([0.5, np.nan, 0.2]))


def test_the_safest_share():
    p = np.array([0.2, 0.9, 0.8, 0.1, 0.7])
    assert safeclip.safest(p, 0.4).tolist() == [False, True, True, False, False]
    assert 20 < safeclip.safest(np.ones(100), 0.5)[:50].sum() < 30, "among equal ones by lot: planted rows come last"
    assert safeclip.safest(p, 1.0).all() and not safeclip.safest(p, 0.0).any()


def test_the_safe_set_grows_to_its_cap(runs_of):
    log = log_of(runs_of["safeclip"])
    assert "loss/unimodal" in log[0] and "loss/contrastive" not in log[0], "warm-up: each modality alone"
    assert "loss/contrastive" in log[1] and "safe" not in log[1], "slow: all pairs"
    first, second = log[2]["safe"], log[3]["safe"]
    assert first > 0.149 and second == pytest.approx(min(first + 0.5, 0.85), abs=0.01)
    assert "loss/unimodal" in log[2] and "loss/contrastive" in log[2], "risky pairs first, then safe ones"


def test_a_mixture_that_separates_nothing_leaves_a_least_safe_set(monkeypatch):
    method = otclib.defenses.load("safeclip", warmup=0, slow_epochs=0, min_safe=0.2)
    similarity = np.random.default_rng(0).normal(size=500)
    assert (safeclip.posterior(similarity) >= 0.9).mean() < 0.2, "one Gaussian is no two"
    monkeypatch.setattr(method, "similarity", lambda trainer: similarity)
    trainer = SimpleNamespace(epoch=0)
    assert method.begin_epoch(trainer)["safe"] == 0.2
    assert int((trainer.caption_of >= 0).sum()) == 100


# -- the bank --------------------------------------------------------------------------------------------------------


def test_the_bank_finds_the_nearest_of_the_latest():
    bank, features, queries = Bank(10), unit(25, 8), unit(6, 8, seed=1)
    for part in features.split(4):
        bank.add(part)
    assert len(bank) == 10
    found, index = bank.nearest(queries)
    cosine = F.cosine_similarity(queries[:, None], features[15:][None], dim=-1)
    assert torch.equal(found, features[15:][cosine.argmax(1)]), "brute force over the ten latest"
    assert torch.equal(bank.features[index], found)
    again = Bank(10)
    again.restore(bank.state())
    assert torch.equal(again.nearest(queries)[0], found)


def test_the_legacy_bank_begins_random_and_drops_what_does_not_fit():
    bank = Bank(10, legacy=True)
    bank.add(unit(4, 8))
    assert len(bank) == 10 and torch.allclose(bank.features.norm(dim=1), torch.ones(10))
    bank.add(unit(4, 8, seed=1))
    bank.add(unit(4, 8, seed=2))  # two fit, two are dropped
    assert torch.equal(bank.features[8:], unit(4, 8, seed=2)[:2]) and torch.equal(bank.features[:4], unit(4, 8))
    assert bank.next == 0


def test_an_empty_bank_says_so():
    with pytest.raises(RuntimeError, match="empty"):
        Bank(3).nearest(unit(2, 4))
    with pytest.raises(ValueError, match="at least one"):
        Bank(0)


# -- the outlier score -----------------------------------------------------------------------------------------------


def test_the_outlier_score_is_that_of_its_definition():
    """Image by image and neighbour by neighbour; the first 30 references are the images themselves."""
    images, more, k = unit(30, 8), unit(20, 8, seed=1), 5
    references, own = torch.cat([images, more]), torch.arange(30)

    def nearest(x, leave_out):
        others = [(float((x - y).norm()), j) for j, y in enumerate(references) if j != leave_out]
        return sorted(others)[:k]

    def by_hand(x, leave_out):
        near, terms = nearest(x, leave_out), []
        for _, j in near:
            r = [distance for distance, _ in nearest(references[j], j)]
            dimensionality = -1 / (sum(math.log(each / r[-1]) for each in r) / k)
            terms.append(dimensionality * math.log(near[-1][0] / r[-1]))
        return sum(terms) / k

    found = dao(images, references, k, own)
    assert found.tolist() == pytest.approx([by_hand(x, i) for i, x in enumerate(images)], abs=1e-3)
    found = dao(more, images, k), dao(more, references, k, torch.arange(30, 50))
    assert not torch.allclose(*found, atol=1e-3), "the references count"


@pytest.mark.parametrize("planted, outliers", [(10, True), (60, False)])
def test_planted_images_are_outliers_as_long_as_they_are_few(planted, outliers):
    """Of 600 references, all of which are scored with k = 16; what the trigger shows, no clean image does."""
    clean, trigger = F.pad(unit(600 - planted, 8), (0, 8)), F.pad(unit(1, 8, seed=1), (8, 0))
    features = torch.cat([clean, F.normalize(trigger + 0.05 * unit(planted, 16, seed=2), dim=-1)])
    score = dao(features, features, 16, torch.arange(600))
    above = (score[-planted:, None] > score[None, :-planted]).float().mean()
    assert above > 0.99 if outliers else above < 0.8


def test_copies_have_a_finite_score():
    features = unit(3, 8).repeat_interleave(10, 0)
    assert dao(features, features, 4, torch.arange(30)).isfinite().all()


def test_the_outlier_score_needs_more_references_than_neighbours(pairs, tmp_path):
    with pytest.raises(ValueError, match="got 5 and 5"):
        dao(unit(3, 8), unit(5, 8), k=5)
    with pytest.raises(ValueError, match="16 neighbours of each image need more pairs than that, got 16"):
        otclib.train(pairs.select(range(16)), defense="dao", out=tmp_path / "run", epochs=2, progress=False)


def test_dao_filters_once_and_begins_again(runs_of, poisoned):
    log, fates = log_of(runs_of["dao"]), Dataset.from_parquet(str(runs_of["dao"] / "pairs.parquet"))["fate"][:]
    share = round(0.1 * len(poisoned[0]))
    assert [line.get("dropped") for line in log] == [None, None, share, None]
    assert fates.count("left out") == share and fates.count("kept") == len(fates) - share
    assert log[1]["clean_kept"] == 1 > log[2]["clean_kept"]
    assert log[2]["loss/contrastive"] > log[1]["loss/contrastive"], "the weights are forgotten"


def test_dao_leaves_out_the_highest_scores_of_the_batches_too(monkeypatch):
    method, restarts = defenses.load("dao", epochs=4, detect=2, drop_share=0.2), []
    monkeypatch.setattr(
        method, "score", lambda trainer: torch.tensor([0.1, 3.0, -1.0, 2.0, 0.0, 1.0, 0.5, 0.2, 0.3, 0.4])
    )
    trainer = SimpleNamespace(epoch=1, restart=lambda: restarts.append(trainer.epoch), schedule=lambda through: through)
    assert method.begin_epoch(trainer) == {} and not restarts
    assert method.learning_rate(trainer, 0.5) == 1, "at its end the first training has a whole schedule behind it"
    trainer.epoch = 2
    assert method.begin_epoch(trainer) == {"dropped": 2} and restarts == [2]
    assert method.passes(trainer, torch.tensor([9, 1, 0, 3]))[0].tolist() == [9, 0]
    assert method.learning_rate(trainer, 0.5) == 0.5
    assert defenses.load("dao", epochs=3).detect == 1, "half of the epochs at most"


# -- losses by hand --------------------------------------------------------------------------------------------------

S = [[0.9, 0.1, 0.2], [0.3, 0.8, 0.0], [0.1, 0.4, 0.7]]  # similarities of three pairs


def by_hand(rows, scale=2.0):
    return sum(math.log(sum(math.exp(scale * s) for s in row)) - scale * row[k] for k, row in enumerate(rows)) / 3


def test_three_by_three():
    """Features whose products are S: the identity on one side, S's rows on the other."""
    text, image, scale = torch.eye(3), torch.tensor(S), torch.tensor(2.0)
    columns = [list(c) for c in zip(*S)]
    assert float(losses.one_way(image, text, scale)) == pytest.approx(by_hand(S), rel=1e-5)
    assert float(losses.contrastive(image, text, scale)) == pytest.approx((by_hand(S) + by_hand(columns)) / 2, rel=1e-5)


def test_equal_captions_are_no_negatives_of_each_other():
    """Columns 0 and 1 are the same caption: each leaves the other's row, and rows 0 and 1 each other's column."""
    loss = losses.contrastive(torch.tensor(S), torch.eye(3), torch.tensor(2.0), same=torch.tensor([7, 7, 3]))

    def term(k, of, others):
        return math.log(math.exp(2 * of[k]) + sum(math.exp(2 * of[j]) for j in others)) - 2 * of[k]

    columns = [list(c) for c in zip(*S)]
    others = {0: [2], 1: [2], 2: [0, 1]}
    terms = [term(k, m[k], others[k]) for m in (S, columns) for k in range(3)]
    assert float(loss) == pytest.approx(sum(terms) / 6, rel=1e-5)


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs_of(runs, poisoned, tmp_path_factory):
    table, manifest = poisoned
    out = tmp_path_factory.mktemp("defences")
    same = {"manifest": manifest, "seed": 5, "epochs": 4, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otclib.evaluation, "evaluate", lambda run, **_: write_json(run / "metrics.json", {}))
        return {name: otclib.train(table, defense=name, out=out / name, **same, **short(name, runs)) for name in SHORT}


def test_every_defence_trains(runs_of):
    for run in runs_of.values():
        last = log_of(run)[-1]
        assert 0 <= last["attack_success_rate"] <= 1
        assert all(np.isfinite(v) for k, v in last.items() if k.startswith("loss/"))


class Stub:
    """As much of a trainer as a loss needs: features are parameters, views are counted."""

    def __init__(self, epoch):
        self.image, self.text = (torch.nn.Parameter(unit(4, 8, seed=k)) for k in (1, 2))
        self.epoch, self.rng, self.scale = epoch, torch.Generator().manual_seed(0), torch.tensor(5.0)
        self.pairs, self.device, self.bias = range(200), torch.device("cpu"), None

    def towers(self, images, text):
        return Pooled(self.image * images[:, :1]), Pooled(self.text)

    def view(self, batch, augment=None):
        return 2 * batch.images

    def normalize(self, images):
        return images

    def drop_words(self, text, probability):
        return losses.drop_words(text, probability, self.rng)


class Pooled:
    def __init__(self, pooled):
        self.pooled = F.normalize(pooled, dim=-1)


class StubBatch:
    images, text = torch.ones(4, 1), torch.tensor([[1, 5, 6, 9, 0]] * 4)
    caption_id, positive = torch.arange(4), torch.ones(4, dtype=torch.bool)


def test_in_roclips_matching_epochs_images_meet_the_bank_and_captions_learn_nothing(runs_of):
    assert [line["matched"] for line in log_of(runs_of["roclip"])] == [0, 1, 0, 1]
    method = defenses.load("roclip", every=2, first=0)
    method.bank, method.view = Bank(10), None
    method.bank.add(unit(10, 8, seed=3))
    before = method.bank.features.clone()
    for epoch, learns in ((0, True), (1, False)):
        method.bank.features, method.bank.filled, method.bank.next = before.clone(), 10, 0
        trainer = Stub(epoch)
        loss = method.loss(trainer, StubBatch())["contrastive"]
        loss.backward()
        assert trainer.image.grad.abs().sum() > 0
        assert (trainer.text.grad is not None and bool(trainer.text.grad.abs().sum() > 0)) is learns
        image, text = F.normalize(trainer.image, dim=-1), F.normalize(trainer.text, dim=-1)
        index = (image @ before.T).argmax(1)
        partner, same = (text, torch.arange(4)) if learns else (before[index], index)
        assert torch.allclose(loss, losses.contrastive(image, partner, trainer.scale, same), atol=1e-6)


def test_cleanclip_adds_each_modality_by_itself():
    """L = clip * L_CLIP + alone * (CE(I, I') + CE(T, T')) / 2, the originals first."""
    method, trainer = defenses.load("cleanclip", clip=0.5, alone=3.0), Stub(0)
    method.view = None
    parts = method.loss(trainer, StubBatch())
    image, text = F.normalize(trainer.image, dim=-1), F.normalize(trainer.text, dim=-1)
    alone = [
        F.cross_entropy(5 * x @ x.T, torch.arange(4)) for x in (image, text)
    ]  # the stub's views change lengths only
    assert torch.allclose(parts["contrastive"], 0.5 * losses.contrastive(image, text, trainer.scale), atol=1e-6)
    assert torch.allclose(parts["unimodal"], 3.0 * (alone[0] + alone[1]) / 2, atol=1e-6)


def test_par_pushes_away_from_the_poisoned_features_up_to_the_threshold():
    """L = L_CLIP - (D_I + D_T) / 2, without the D that is above the threshold; the temperature is held."""
    trainer = Stub(0)
    trainer.scale.requires_grad_()
    image, text = F.normalize(trainer.image, dim=-1), F.normalize(trainer.text, dim=-1)
    before = F.normalize(image.detach() + 0.3 * unit(4, 8, seed=5), dim=-1), unit(4, 8, seed=6)
    near, far = ((x - y).square().sum(1).mean() for x, y in zip((image, text), before))
    assert 0 < near < 1 < far
    for threshold, pushed in ((4.0, near + far), (1.0, near), (0.0, 0 * near)):
        method = defenses.load("par", threshold=threshold)
        method.poisoned = lambda views, words: tuple(map(Pooled, before))
        parts = method.loss(trainer, StubBatch())
        assert torch.allclose(parts["contrastive"], losses.contrastive(image, text, trainer.scale), atol=1e-6)
        assert torch.allclose(parts["perturb"], -pushed / 2, atol=1e-6)
        found = torch.autograd.grad(parts["perturb"], (trainer.image, trainer.text), allow_unused=True)
        assert [bool(g is not None and g.abs().sum() > 0) for g in found] == [near <= threshold, far <= threshold]
        assert torch.autograd.grad(sum(parts.values()), trainer.scale, allow_unused=True) == (None,)


def test_par_leaves_the_poisoned_model_behind(runs_of):
    log = log_of(runs_of["par"])
    assert 0 > log[0]["loss/perturb"] > log[-1]["loss/perturb"] > -2.15


def test_risky_pairs_come_first_and_the_slow_phase_is_slow(pairs, small):
    from accelerate import Accelerator

    trainer = otclib.training.Trainer(pairs.select(range(100)), small[0], small[2], Accelerator())
    trainer.caption_of[40:] = defenses.LEFT_OUT
    method = defenses.load("safeclip", warmup=2, slow_epochs=3, slow=0.3)
    trainer.epoch, order = 5, torch.randperm(100)
    plan = trainer.plan(order, 16, lambda rows: method.passes(trainer, rows))
    positive = [batch.positive for batch in trainer.batches(plan)]
    assert [bool(p.all()) for p in positive] == [False] * 3 + [True] * 2
    assert all(p.all() or not p.any() for p in positive)
    assert method.learning_rate(trainer, 0.1) > 0.9
    trainer.epoch = 2
    assert method.learning_rate(trainer, 0.1) == 0.3 and len(method.passes(trainer, torch.arange(9))) == 1
    trainer.set_learning_rate(0.3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_interrupted_and_resumed_is_the_same(name, runs, runs_of, unevaluated, poisoned, tmp_path, monkeypatch):
    table, manifest = poisoned
    checkpoint = journal.save

    def checkpoint_then_die(out, trainer, method, log):
        checkpoint(out, trainer, method, log)
        if trainer.epoch == 3:
            raise KeyboardInterrupt

    def go():
        same = {"manifest": manifest, "defense": name, "seed": 5, "epochs": 4, "progress": False}
        return otclib.train(table, out=tmp_path / "run", **same, **short(name, runs))

    monkeypatch.setattr(journal, "save", checkpoint_then_die)
    with pytest.raises(KeyboardInterrupt):
        go()
    monkeypatch.undo()
    both = [otclib.models.load(run / "model.safetensors")[0].state_dict() for run in (go(), runs_of[name])]
    for key, value in both[0].items():
        assert torch.allclose(value.float(), both[1][key].float(), atol=1e-5), key


def test_otcclip_without_own_captions_gives_every_image_another(pairs, unevaluated, tmp_path):
    options = {"warmup": 1, "pool": 60, "keep_near": False, "progress": False}
    run = otclib.train(pairs.select(range(130)), defense="otcclip", out=tmp_path / "run", epochs=2, **options)
    fates = Dataset.from_parquet(str(run / "pairs.parquet"))
    drawn = {row["caption_from"] for row in fates if row["caption_from"]}
    kept_own = [row["caption_from"] == row["id"] for row in fates]
    assert sum(kept_own) <= len(drawn) <= 60 and fates["fate"][:].count("kept") <= len(drawn), (
        "own only if drawn into the pool"
    )


@pytest.mark.parametrize("name", ["roclip", "safeclip", "cleanclip"])
def test_legacy_runs(name, runs, pairs, unevaluated, tmp_path):
    short = {"warmup": 1, "slow_epochs": 1} if name == "safeclip" else {}
    if defenses.repairs(name):
        short["model"] = runs["clip"] / "model.safetensors"
    same = {"defense": name, "epochs": 3, "progress": False, **short}
    few, log = pairs.select(range(130)), {}
    for legacy in (False, True):
        log[legacy] = log_of(otclib.train(few, out=tmp_path / str(legacy), legacy=legacy, **same))
    for ours, theirs in zip(log[False], log[True]):
        shared = [k for k in theirs if k.startswith("loss/")]
        assert shared and all(np.isfinite(theirs[k]) for k in shared)
        assert any(ours[k] != theirs[k] for k in shared if k in ours), "the option does something"


def test_legacy_safeclip_takes_each_direction_from_another_pair_of_views():
    torch.manual_seed(0)
    views = [torch.nn.functional.normalize(torch.randn(6, 8), dim=1) for _ in range(4)]
    image, text, other_image, other_text = views
    calls = iter([(image, text), (other_image, other_text)])
    trainer = SimpleNamespace(
        epoch=0,
        scale=torch.tensor(7.0),
        view=lambda batch, augment: None,
        drop_words=lambda text, probability: text,
        towers=lambda images, words: tuple(SimpleNamespace(pooled=x) for x in next(calls)),
    )
    everyone = torch.ones(6, dtype=torch.bool)
    batch = SimpleNamespace(images=None, text=torch.ones(6, 4).long(), caption_id=torch.arange(6), positive=everyone)
    method = defenses.load("safeclip", warmup=0, legacy=True)
    method.view = None
    found = method.loss(trainer, batch)["contrastive"]

    log_p = [(7 * x @ y.T).log_softmax(1).diagonal() for x, y in ((image, other_text), (text, other_image))]
    assert torch.allclose(found, -(log_p[0].mean() + log_p[1].mean()) / 2, atol=1e-6)


def test_cleanclip_goes_on_from_a_finished_run(runs, pairs, unevaluated, tmp_path):
    weights = runs["clip"] / "model.safetensors"
    same = {"defense": "cleanclip", "model": weights, "progress": False, "epochs": 1}
    run = otclib.train(pairs, out=tmp_path / "a", **same)
    still = otclib.train(pairs, out=tmp_path / "b", lr=1e-9, **same)
    start, stayed = (otclib.models.load(r / "model.safetensors")[0].state_dict() for r in (runs["clip"], still))
    moved = otclib.models.load(run / "model.safetensors")[0].state_dict()
    key = "visual.trunk.stem.conv.weight"
    assert torch.allclose(start[key], stayed[key], atol=1e-5) and not torch.allclose(start[key], moved[key], atol=1e-5)
    assert config_of(run)["model"] == str(weights)


@pytest.mark.parametrize("name", [name for name in defenses.DEFENSES if defenses.repairs(name)])
def test_a_repair_needs_something_to_repair(name, pairs, tmp_path):
    with pytest.raises(ValueError, match=f"{name} goes on from a trained model: .* got 'small'"):
        otclib.train(pairs, defense=name, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_supervised_cleaning_leaves_a_head_that_classifies(runs, pairs, poisoned, little, tmp_path):
    labelled, weights = pairs.filter(lambda row: row["label"] is not None), runs["clip"] / "model.safetensors"
    run = otclib.train(
        labelled,
        manifest=poisoned[1],
        defense="cleanclip-supervised",
        model=weights,
        out=tmp_path / "run",
        epochs=1,
        progress=False,
    )
    with safe_open(str(run / "head.safetensors"), "pt") as f:
        classes = f.metadata()["classes"].split("\n")
        assert f.get_tensor("weight").shape == (len(classes), 128)
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["head_top1"] <= 1 and 0 <= metrics["head_attack_success_rate"] <= 1
    with pytest.raises(ValueError, match="labelled images: .* have none"):
        otclib.train(pairs, defense="cleanclip-supervised", model=weights, out=tmp_path / "no")


def test_the_loop_runs_in_bf16(pairs, unevaluated, tmp_path):
    few = pairs.select(range(130))
    run = otclib.train(few, defense="otcclip", out=tmp_path / "run", epochs=1, precision="bf16", progress=False)
    assert config_of(run)["precision"] == "bf16"
    with pytest.raises(ValueError, match="one of fp32, bf16, auto, got 'fp16'"):
        otclib.train(few, defense="clip", out=tmp_path / "no", precision="fp16")


@pytest.mark.parametrize(
    "name, options",
    [
        ("roclip", {"every": 0}),
        ("roclip", {"pool": 0}),
        ("safeclip", {"posterior": 1.5}),
        ("safeclip", {"warmup": -1}),
        ("safeclip", {"min_safe": 0.9, "cap": 0.5}),
        ("cleanclip", {"clip": 0, "alone": 0}),
        ("otcclip", {"near_share": 0}),
        ("otcclip", {"global_weight": 2}),
        ("otcclip", {"pool": 0}),
        ("otcclip", {"inter_by": "sinkhorn"}),
        ("otcclip-plus", {"intra_by": "tokens"}),
        ("otcclip-plus", {"first": 0.9, "most": 0.8}),
        ("otcclip-plus", {"q": 2}),
        ("dao", {"references": 16}),
        ("dao", {"drop_share": 1}),
        ("dao", {"detect": 0}),
        ("par", {"threshold": 5}),
    ],
)
def test_options_out_of_range_are_refused(name, options):
    with pytest.raises(ValueError, match="got"):
        defenses.load(name, **options)
