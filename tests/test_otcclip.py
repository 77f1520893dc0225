"""OTCCLIP and OTCCLIP plus: who is kept, who is given another caption, who is left out, and who is seen blurred."""

from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

import otclib
from otclib import defenses, training
from otclib.defenses import copies, otcclip_plus
from otclib.defenses.otcclip import OTCClip
from otclib.defenses.otcclip_plus import OTCClipPlus
from otclib.defenses.views import WEAK
from otclib.training.monitoring import Captions


def test_otcclip_stays_moves_or_leaves_out(poisoned, small):
    """Whoever moves gets a caption of the pool; if all ranks are near enough all stay."""
    from accelerate import Accelerator

    table, _ = poisoned
    own = torch.arange(len(table))

    def assign(**options):
        trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
        method = OTCClip(pool=60, warmup=1, every=1, **options)
        trainer.epoch = 2
        method.begin_epoch(trainer)
        return trainer.caption_of

    caption_of = assign(near_share=0.2)
    moved = (caption_of != own) & (caption_of != defenses.LEFT_OUT)
    assert len(caption_of[moved].unique()) <= 60 and caption_of.max() < len(table)
    assert torch.equal(assign(near_share=1.0), own)


def knowing(poisoned, small, monkeypatch):
    """A trainer whose towers know every class, on the rows that have a label."""
    from accelerate import Accelerator

    from otclib.models import Features

    table, manifest = poisoned
    rows = [k for k, label in enumerate(table["label"]) if label is not None]
    table = table.select(rows)
    labels, captions = table["label"][:], table["caption"][:]
    classes = otclib.data.classes(table)
    named = [next(c for c in classes if otclib.data.names(text, c)) for text in captions]
    basis = torch.nn.functional.one_hot(torch.arange(len(classes))).float()
    noise = torch.Generator().manual_seed(0)

    def features(names, tokens):
        x = basis[[classes.index(n) for n in names]][:, None].expand(-1, tokens, -1)
        x = torch.nn.functional.normalize(x + 0.1 * torch.randn(x.shape, generator=noise), dim=-1)
        return Features(torch.nn.functional.normalize(x.mean(1), dim=-1), x, torch.ones(x.shape[:2]).bool())

    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    own, seen = features(named, 5), features(labels, 9)
    monkeypatch.setattr(trainer, "encode_captions", lambda rows: own[rows])
    monkeypatch.setattr(
        trainer,
        "encode_images",
        lambda rows=None, augment=None, side=None: iter(
            [(r, seen[r]) for r in [torch.arange(len(table)) if rows is None else rows]]
        ),
    )
    trainer.epoch = 1
    return trainer, Captions(table, manifest)


def test_otcclip_tells_planted_pairs_from_clean_ones_when_features_are_perfect(poisoned, small, monkeypatch):
    """Clean pairs stay, planted ones do not, and who moves gets the true class."""
    trainer, captions = knowing(poisoned, small, monkeypatch)
    OTCClip(warmup=0, every=1, pool=len(trainer.pairs), near_share=0.06).begin_epoch(trainer)
    look = captions.look(trainer.caption_of)
    assert look["clean_kept"] > 0.9 and look["clean_named"] > 0.99
    assert look["poison_kept"] <= 2 * 0.06, "no more than a random pair would"
    assert look["poison_named"] is None or look["poison_named"] > 0.7


def test_otcclip_plus_keeps_clean_pairs_and_leaves_planted_ones_when_features_are_perfect(poisoned, small, monkeypatch):
    trainer, captions = knowing(poisoned, small, monkeypatch)
    method = OTCClipPlus(warmup=0, ready=1.0, pool=len(trainer.pairs), first=0.8)
    method.begin(trainer)
    line = method.begin_epoch(trainer)
    look = captions.look(trainer.caption_of)
    assert line["matched"] and line["rivals"] < 0.1 and method.start == 1
    assert look["clean_kept"] > 0.8 and look["poison_kept"] == 0
    moved = trainer.caption_of != torch.arange(len(trainer.pairs))
    assert (trainer.caption_of[moved] == defenses.LEFT_OUT).all(), "nobody gets another caption"


@pytest.mark.parametrize("option, by, other", [("inter", "filip", "intra"), ("intra", "pooled", "inter")])
def test_otcclip_compares_tokens_as_it_is_asked_to(poisoned, small, option, by, other):
    """The option changes its own loss, to that of its name, and leaves the other one alone."""
    from accelerate import Accelerator

    def parts(**options):
        trainer = training.Trainer(poisoned[0], small[0], small[2], Accelerator(cpu=True), seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            return OTCClip(**options).loss(trainer, next(trainer.batches([torch.arange(32)])))

    usual, changed = parts(), parts(**{f"{option}_by": by})
    assert changed[other] == usual[other] and changed[option] != usual[option]


def test_warm_up_then_separate_then_re_assign(poisoned, small):
    from accelerate import Accelerator

    table, _ = poisoned
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClip(epochs=4, warmup=2, every=1, pool=60, near_share=0.2)
    own, fates = torch.arange(len(table)), []
    for trainer.epoch in range(4):
        assert bool(method.begin_epoch(trainer)) == (trainer.epoch >= 2)
        moved = (trainer.caption_of != own) & (trainer.caption_of != defenses.LEFT_OUT)
        fates.append((int((trainer.caption_of == defenses.LEFT_OUT).sum()), int(moved.sum())))
    assert fates[:2] == [(0, 0)] * 2, "the warm-up touches no pair"
    assert fates[2][0] > 0 and fates[2][1] == 0, "the first matching only separates"
    assert fates[3][1] > 0, "the next one re-assigns"
    assert OTCClip(epochs=2).warmup == 1, "of a short run all but the last epoch"


def test_otcclip_plus_judges_when_half_of_the_pairs_have_few_rivals_and_keeps_a_growing_share(poisoned, small):
    from accelerate import Accelerator

    table, _ = poisoned
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClipPlus(epochs=10, warmup=2, ready=1e-6, first=0.5, grow=0.1, most=0.65, pool=60, every=1)
    method.begin(trainer)
    lines, kept, q = [], [], []
    for trainer.epoch in range(8):
        lines.append(method.begin_epoch(trainer))
        kept.append(float(method.near.float().mean()))
        q.append(method.robustness(trainer))
        assert not method.near[trainer.caption_of != defenses.LEFT_OUT].logical_not().any(), "only near pairs are drawn"
    assert ["rivals" in line for line in lines] == [False, False, True, True, True, True, False, False]
    assert method.start == 5, "this model knows nothing, so it waits for half of the epochs"
    assert kept == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.6, 0.65], abs=0.01)
    assert q == [0, 0, 0, 0, 0, 0.5, 0.5, 0.5]
    soon = OTCClipPlus(warmup=2, ready=1.0, pool=60)
    soon.begin(trainer)
    for trainer.epoch in range(3):
        soon.begin_epoch(trainer)
    assert soon.start == 2


class Middle:
    """Shows the middle of each image, this share of its area."""

    def __init__(self, area):
        self.area = area

    def draw(self, n):
        return torch.zeros(n)

    def __call__(self, images, size, draws=None):
        side = round(images.shape[-1] * self.area**0.5)
        return tv.resize(tv.center_crop(images, [side, side]), [size, size]).float() / 255


def test_two_looks_count_the_rivals_of_the_worse_one(poisoned, small, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(otcclip_plus, "blurred", lambda share: Middle(0.5 if share else 1.0))
    trainer = training.Trainer(poisoned[0].select(range(120)), small[0], small[2], Accelerator(cpu=True), seed=0)
    found = {blur: OTCClipPlus(blur=blur).rivals(trainer, torch.arange(60)) for blur in (0.0, 0.01)}
    assert (found[0.01] >= found[0.0]).all() and (found[0.01] > found[0.0]).any()


@pytest.mark.parametrize("blur", [0.0, 0.05])
def test_all_is_seen_blurred_until_it_is_judged(poisoned, small, monkeypatch, blur):
    from accelerate import Accelerator

    trainer = training.Trainer(poisoned[0].select(range(6)), small[0], small[2], Accelerator(cpu=True), seed=0)
    images = otclib.data.image_tensor(poisoned[0].select(range(6)), 64)
    method, seen = OTCClipPlus(warmup=1, ready=1.0, pool=4, blur=blur), []
    monkeypatch.setattr(method, "rivals", lambda trainer, pool, rows=None: torch.zeros(6))
    method.begin(trainer)
    for trainer.epoch in (0, 1):
        method.begin_epoch(trainer)
        torch.manual_seed(0)
        seen.append(method.views(SimpleNamespace(row=torch.arange(6)))(images, 48))
    torch.manual_seed(0)
    assert torch.equal(seen[1], WEAK(images, 48))
    edges = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in seen]
    assert edges[0] < 0.8 * edges[1] if blur else torch.equal(*seen)


def test_the_rivals_of_all_judgements_count(poisoned, small, monkeypatch):
    from accelerate import Accelerator

    trainer = training.Trainer(poisoned[0].select(range(4)), small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClipPlus(warmup=0, ready=1.0, first=0.5, grow=0.0, every=1, alike=1.1, pool=4)
    counts = iter([[0.5, 0.1, 0.2, 0.9], [0.1, 0.6, 0.3, 0.0]])
    monkeypatch.setattr(method, "rivals", lambda trainer, pool, rows=None: (
        torch.zeros(4) if rows is not None else torch.tensor(next(counts))
    ))  # fmt: skip
    method.begin(trainer)
    method.begin_epoch(trainer)
    assert method.near.tolist() == [False, True, True, False]
    trainer.epoch = 1
    method.begin_epoch(trainer)
    assert method.near.tolist() == [True, False, True, False], "0.6, 0.7, 0.5 and 0.9 in all"


def test_the_last_pairs_that_are_kept_are_seen_blurred(poisoned, small, monkeypatch):
    from accelerate import Accelerator

    trainer = training.Trainer(poisoned[0].select(range(10)), small[0], small[2], Accelerator(cpu=True), seed=0)
    method = OTCClipPlus(warmup=0, ready=1.0, first=0.8, most=0.8, sharp=0.5, alike=1.1, pool=4)
    counts = torch.linspace(0, 0.9, 10)
    monkeypatch.setattr(method, "rivals", lambda trainer, pool, rows=None: counts if rows is None else counts[rows] * 0)
    method.begin(trainer)
    method.begin_epoch(trainer)
    assert method.near.tolist() == [True] * 8 + [False] * 2
    assert method.doubtful.tolist() == [False] * 5 + [True] * 3 + [False] * 2
    batch = SimpleNamespace(row=torch.tensor([0, 7, 9]))
    assert method.views(batch).draw(3).sigma.tolist() == pytest.approx([0, method.blur, 0])


def test_what_is_left_out_is_a_negative_unless_told_otherwise(poisoned, small):
    from accelerate import Accelerator

    trainer = training.Trainer(poisoned[0].select(range(8)), small[0], small[2], Accelerator(cpu=True), seed=0)
    trainer.caption_of[[2, 5]] = defenses.LEFT_OUT
    rows = torch.tensor([7, 5, 2, 0])
    assert [part.tolist() for part in OTCClipPlus().passes(trainer, rows)] == [[7, 5, 2, 0]]
    assert [part.tolist() for part in OTCClipPlus(negatives=False).passes(trainer, rows)] == [[7, 0]]


def test_brighter_copies_are_alike_and_other_images_are_not(poisoned):
    images = otclib.data.image_tensor(poisoned[0].select(range(40)), 64)
    darker = (images * 0.7 + 20).to(torch.uint8)
    group = copies.groups(copies.fingerprints(torch.cat([images, darker])), 0.99)
    assert torch.equal(group[:40], group[40:]) and len(group.unique()) == 40


def test_otcclip_plus_draws_one_of_the_copies_of_an_image(poisoned, small):
    from accelerate import Accelerator

    table, manifest = poisoned
    trainer = training.Trainer(table, small[0], small[2], Accelerator(cpu=True), seed=0)
    copied = {id.rsplit("+", 1)[0]: [] for id, kind in zip(manifest["id"], manifest["kind"]) if kind == "targeted"}
    for row, id in enumerate(table["id"]):
        if "+" in id:
            copied[id.rsplit("+", 1)[0]].append(row)
    assert len(copied) > 1 and all(len(rows) > 1 for rows in copied.values())
    method = OTCClipPlus()
    method.begin(trainer)
    method.begin_epoch(trainer)
    for rows in copied.values():
        assert int((trainer.caption_of[rows] != defenses.LEFT_OUT).sum()) == 1
    everyone = OTCClipPlus(alike=1.1)
    everyone.begin(trainer)
    everyone.begin_epoch(trainer)
    assert (trainer.caption_of != defenses.LEFT_OUT).all()
