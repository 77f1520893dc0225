"""Losses, on cases small enough to compute by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from otclib import losses
from otclib.models import Features


def tokens(*vectors):
    t = F.normalize(torch.tensor(vectors, dtype=torch.float32), dim=-1)
    return t


def features(token_sets):
    t = torch.stack(token_sets)
    return Features(F.normalize(t.mean(1), dim=-1), t, torch.ones(t.shape[:2]).bool())


def test_symmetric_cross_entropy_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    rows = [math.log(math.exp(d) + 2) - d for d in (2, 1, 3)]
    assert math.isclose(float(losses.symmetric_cross_entropy(logits)), sum(rows) / 3, rel_tol=1e-5)


def test_rows_and_columns_both_count():
    logits = torch.tensor([[1.0, 5.0], [0.0, 1.0]])
    rows = (math.log(math.e + math.exp(5)) - 1 + math.log(1 + math.e) - 1) / 2
    columns = (math.log(math.e + 1) - 1 + math.log(math.exp(5) + math.e) - 1) / 2
    assert math.isclose(float(losses.symmetric_cross_entropy(logits)), (rows + columns) / 2, rel_tol=1e-5)


def test_equal_captions_are_no_negatives():
    logits = torch.zeros(3, 3)
    same = torch.tensor([4, 4, 9])
    expected = (2 * math.log(2) + math.log(3)) / 3
    assert math.isclose(float(losses.symmetric_cross_entropy(logits, same)), expected, rel_tol=1e-5)


def test_robust_weights_by_hand():
    """p^q over its mean weights every term; the gradient is that of (1 - p^q) / q up to one factor for a direction."""
    logits = torch.tensor([[2.0, 0.0], [0.5, 1.0]])
    expected = 0.0
    for x in (logits, logits.T):
        p = x.softmax(1).diagonal()
        expected += float((p**0.5 / (p**0.5).mean() * -p.log()).mean()) / 2
    assert math.isclose(float(losses.symmetric_cross_entropy(logits, q=0.5)), expected, rel_tol=1e-5)
    a, b = (torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    losses.symmetric_cross_entropy(a, q=0.7).backward()
    rows, columns = b.softmax(1).diagonal() ** 0.7, b.softmax(0).diagonal() ** 0.7
    (-(rows.mean().log() + columns.mean().log()) / 0.7 / 2).backward()  # its gradient: (1 - p^q)/q over the mean of p^q
    assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_a_pair_that_contradicts_the_rest_is_hardly_heard():
    logits = torch.full((8, 8), -4.0).fill_diagonal_(4.0)
    logits[0, 0], logits[0, 1] = -4.0, 4.0  # this image is sure to be another's caption

    def pull(q):
        x = logits.clone().requires_grad_()
        losses.symmetric_cross_entropy(x, q=q).backward()
        return -float(x.grad[0, 0])

    assert pull(0.0) > 0.1 and pull(1.0) < 0.1 * pull(0.0)


def test_left_out_pairs_are_negatives_only():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positive = torch.tensor([True, True, True, False])
    loss = losses.symmetric_cross_entropy(logits, q=0.5, positive=positive)
    loss.backward()
    assert logits.grad[3, 3] == 0 and (logits.grad[:3, 3] > 0).all() and (logits.grad[3, :3] > 0).all()
    assert losses.symmetric_cross_entropy(logits, positive=torch.zeros(4).bool()) == 0


def test_contrastive_is_clip_loss():
    v, t = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    from open_clip import ClipLoss

    assert torch.allclose(losses.contrastive(v, t, torch.tensor(7.0)), ClipLoss()(v, t, torch.tensor(7.0)))


def test_a_bias_makes_it_siglips_loss():
    from open_clip.loss import SigLipLoss

    v, t = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    assert torch.allclose(losses.contrastive(v, t, scale, bias=bias), SigLipLoss()(v, t, scale, bias), atol=1e-5)
    assert torch.allclose(
        losses.contrastive(v, t, scale[None], bias=bias[None]), SigLipLoss()(v, t, scale[None], bias[None]), atol=1e-5
    ), "some checkpoints keep both as vectors of one element"


def test_pairwise_sigmoid_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [1.5, -0.5, -3.0]])
    pull = [math.log(1 + math.exp(-x)) for x in (2.0, 1.0, -3.0)]
    push = {(i, j): math.log(1 + math.exp(float(logits[i, j]))) for i in range(3) for j in range(3) if i != j}
    everything = sum(push.values())
    sigmoid = losses.pairwise_sigmoid
    assert math.isclose(float(sigmoid(logits)), (sum(pull) + everything) / 3, rel_tol=1e-5)
    same = torch.tensor([4, 4, 9])
    assert math.isclose(
        float(sigmoid(logits, same)), (sum(pull) + everything - push[0, 1] - push[1, 0]) / 3, rel_tol=1e-5
    )
    positive = torch.tensor([True, True, False])
    assert math.isclose(float(sigmoid(logits, positive=positive)), (pull[0] + pull[1] + everything) / 3, rel_tol=1e-5)
    assert math.isclose(float(sigmoid(logits, positive=torch.zeros(3).bool(), q=0.5)), everything / 3, rel_tol=1e-5)
    favour = [math.exp(-0.5 * x) for x in pull]  # p^q
    weighted = sum(3 * f / sum(favour) * x for f, x in zip(favour, pull))
    assert math.isclose(float(sigmoid(logits, q=0.5)), (weighted + everything) / 3, rel_tol=1e-5)
    weighted = sum(2 * f / sum(favour[:2]) * x for f, x in zip(favour[:2], pull))
    assert math.isclose(float(sigmoid(logits, q=0.5, positive=positive)), (weighted + everything) / 3, rel_tol=1e-5)


def test_options_of_the_pairwise_sigmoid_reach_the_gradient():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    positive = torch.tensor([True, True, True, False])
    losses.pairwise_sigmoid(logits, torch.tensor([1, 1, 2, 3]), q=0.5, positive=positive).backward()
    assert logits.grad[3, 3] == 0 and (logits.grad.diagonal()[:3] < 0).all()
    assert logits.grad[0, 1] == logits.grad[1, 0] == 0, "equal captions"
    assert (logits.grad[:3, 3] > 0).all() and (logits.grad[3, :3] > 0).all(), "a left-out pair is a negative"
    sure = torch.full((6, 6), -4.0).fill_diagonal_(4.0)
    sure[0, 0] = -4.0  # this pair contradicts the rest

    def pull(q):
        x = sure.clone().requires_grad_()
        losses.pairwise_sigmoid(x, q=q).backward()
        return -float(x.grad[0, 0])

    assert pull(1.0) < 0.1 * pull(0.0)


def test_transport_similarity_of_permuted_tokens_is_one():
    x = [tokens([1, 0, 0], [0, 1, 0]), tokens([0, 0, 1], [1, 0, 0])]
    y = [t.flip(0) for t in x]
    s = losses.transport_similarity(features(x), features(y), reg=0.02, max_iter=200)
    # the off-diagonal sets share one of two tokens: half of the mass travels for free
    assert torch.allclose(s, torch.tensor([[1.0, 0.5], [0.5, 1.0]]), atol=1e-2)


def test_large_reg_gives_the_mean_tokens():
    x, y = (features([F.normalize(torch.randn(4, 6), dim=-1) for _ in range(3)]) for _ in range(2))
    s = losses.transport_similarity(x, y, reg=1e4)
    assert torch.allclose(s, x.tokens.mean(1) @ y.tokens.mean(1).T, atol=1e-4)


def test_gradients_reach_both_sides_and_are_finite():
    x, y = (torch.randn(3, 4, 6, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    fx = Features(F.normalize(x.mean(1), dim=-1), F.normalize(x, dim=-1), torch.ones(3, 4).bool())
    fy = Features(F.normalize(y.mean(1), dim=-1), F.normalize(y, dim=-1), mask)
    losses.inter_modal(fx, fy, torch.tensor(10.0), 0.1).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
    assert torch.isfinite(y.grad).all() and (y.grad[0, 2:] == 0).all()


# -- the controls ----------------------------------------------------------------------------------------------------


def padded(places=5):
    """The leaves and the features of images of so many places, and of captions of 1 to 4 words with padding."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, 6, generator=g, requires_grad=True) for n in (places, 4))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    every = torch.ones(3, places).bool()
    sets = ((x, every), (y, mask))
    return (x, y), *(Features(F.normalize(t.mean(1), dim=-1), F.normalize(t, dim=-1), m) for t, m in sets)


@pytest.mark.parametrize("by", losses.INTER)
@pytest.mark.parametrize("places", [5, 1])
def test_every_inter_modal_loss_has_finite_gradients_and_none_for_padding(by, places):
    (x, y), image, text = padded(places)
    text.pooled = text.pooled.detach()
    positive = torch.tensor([True, True, False])
    losses.inter_modal(image, text, torch.tensor(10.0), 0.1, positive=positive, by=by).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all() and y.grad[1].abs().sum() > 0
    assert (y.grad[~text.mask] == 0).all()
    assert x.grad[:2].abs().sum() > 0 or (by, places) == ("sparc", 1), "one place is the average for every word"
    none = losses.inter_modal(image, text, torch.tensor(10.0), 0.1, positive=positive & False, by=by)
    assert none == 0


def test_padding_changes_no_inter_modal_loss():
    _, image, text = padded()
    for by in losses.INTER:
        before = losses.inter_modal(image, text, torch.tensor(10.0), 0.1, by=by)
        other = torch.where(text.mask[..., None], text.tokens, -text.tokens)
        after = losses.inter_modal(image, Features(text.pooled, other, text.mask), torch.tensor(10.0), 0.1, by=by)
        assert torch.equal(before, after), by


def test_no_two_inter_modal_losses_are_the_same():
    _, image, text = padded()
    found = [losses.inter_modal(image, text, torch.tensor(10.0), 0.1, by=by).item() for by in losses.INTER]
    assert len({round(value, 4) for value in found}) == len(losses.INTER), found


def test_an_unknown_comparison_is_refused():
    _, image, text = padded()
    with pytest.raises(ValueError, match="one of balanced, norm, unbalanced, sparc, filip, got 'sinkhorn'"):
        losses.inter_modal(image, text, torch.tensor(10.0), 0.1, by="sinkhorn")
    with pytest.raises(ValueError, match="one of transport, pooled, got 'mean'"):
        losses.intra_modal(image, image, torch.tensor(10.0), 0.1, by="mean")


def test_tokens_weigh_as_they_agree_with_their_pooled_feature():
    """One word, so that the plan is the weights: the similarity is the weighted mean of the places' cosines."""
    places, every = tokens([1, 0], [0, 1], [0, -1])[None], torch.ones(1, 3).bool()
    image = Features(tokens([0.8, 0.6]), places, every)
    word = Features(tokens([1, 0]), tokens([1, 0])[None], torch.ones(1, 1).bool())
    assert losses.token_weights(image, "norm").tolist() == [pytest.approx([0.8, 0.6, losses.LEAST])]
    assert losses.token_weights(image, "balanced").tolist() == [[1, 1, 1]]
    found = losses.transport_similarity(image, word, 0.1, by="norm")
    assert float(found) == pytest.approx(0.8 / (1.4 + losses.LEAST), abs=1e-4)
    assert float(losses.transport_similarity(image, word, 0.1)) == pytest.approx(1 / 3, abs=1e-4)


def test_unbalanced_similarity_is_that_of_pots_plan():
    import ot

    _, image, text = padded()
    found = losses.transport_similarity(image, text, 0.2, by="unbalanced")
    for i in range(3):
        for j in range(3):
            S = (image.tokens[i] @ text.tokens[j, text.mask[j]].T).detach().double().numpy()
            a, b = ([1 / n] * n for n in S.shape)
            how = {"reg_type": "entropy", "stopThr": 1e-12, "numItermax": 20_000}
            plan = ot.unbalanced.sinkhorn_unbalanced(a, b, 1 - S, 0.2, losses.RHO, **how)
            assert found[i, j].item() == pytest.approx((plan * S).sum(), abs=2e-3)
            assert abs(plan.sum() - 1) > 0.02, "the marginals are not met"


def test_filip_by_hand():
    """Images see (e0, e1) and (e2, e2); captions say (e0 and padding) and (e2, e1)."""
    e = torch.eye(3)
    image = features([e[[0, 1]], e[[2, 2]]])
    text = Features(e[:2], torch.stack([e[[0, 1]], e[[2, 1]]]), torch.tensor([[True, False], [True, True]]))
    rows, columns = losses.token_maxima(image, text)
    assert rows.tolist() == [[0.5, 0.5], [0.0, 1.0]], "of two places one finds its word; padding is not chosen"
    assert columns.tolist() == [[1.0, 0.5], [0.0, 0.5]], "padding is not counted"

    def term(own, other):
        return math.log(math.exp(2 * own) + math.exp(2 * other)) - 2 * own

    images, captions = term(0.5, 0.5) + term(1.0, 0.0), term(1.0, 0.0) + term(0.5, 0.5)
    loss = losses.inter_modal(image, text, torch.tensor(2.0), 0.1, by="filip")
    assert float(loss) == pytest.approx((images + captions) / 4, rel=1e-5)
    one = losses.inter_modal(image, text, torch.tensor(2.0), 0.1, same=torch.tensor([4, 4]), by="filip")
    assert float(one) == 0, "equal captions are no negatives"


def test_sparc_by_hand():
    """The word's cosines 1, 0.6, -0.6 and -1 become 1, 0.8, 0.2 and 0 of [0, 1], and 0.2 is below 1 / 4."""
    places = tokens([1, 0], [0.6, 0.8], [-0.6, 0.8], [-1, 0])
    words = tokens([1, 0], [0, 1])
    text = Features(words[:1], words[None], torch.tensor([[True, True]]))
    image = features([places])
    found = losses.grouped_patches(image, text)
    assert torch.allclose(found[0, 0], F.normalize(torch.tensor([1 + 0.8 * 0.6, 0.8 * 0.8]), dim=0), atol=1e-6)
    assert torch.allclose(found[0, 1], torch.tensor([0.0, 1.0]), atol=1e-6), "two places say it, as strongly"

    x, scale = math.hypot(1.48, 0.64), 2.0
    logits = [[scale * 1.48 / x, scale * 0.64 / x], [0.0, scale]]  # averages against words
    rows = [math.log(sum(map(math.exp, row))) - row[k] for k, row in enumerate(logits)]
    columns = [math.log(sum(map(math.exp, row))) - row[k] for k, row in enumerate(zip(*logits))]
    loss = losses.inter_modal(image, text, torch.tensor(scale), 0.1, by="sparc")
    assert float(loss) == pytest.approx((sum(rows) + sum(columns)) / 4, rel=1e-5)


def test_sparc_contrasts_within_one_pair():
    _, image, text = padded()
    parts = [losses.sparse_alignment(image[k : k + 1], text[k : k + 1], torch.tensor(5.0)) for k in range(3)]
    assert parts[2] == 0, "one word has no negative"
    assert torch.allclose(losses.sparse_alignment(image, text, torch.tensor(5.0)), sum(parts) / 3, atol=1e-6)
    some = losses.sparse_alignment(image, text, torch.tensor(5.0), torch.tensor([True, False, True]))
    assert torch.allclose(some, parts[0] / 2, atol=1e-6)
    every = image.mask.clone()
    every[:, 3:] = False  # padded places are neither averaged nor counted
    shorter = Features(image.pooled, image.tokens[:, :3], every[:, :3])
    longer = Features(image.pooled, image.tokens, every)
    assert torch.allclose(losses.grouped_patches(longer, text), losses.grouped_patches(shorter, text), atol=1e-6)


def test_the_intra_modal_loss_on_pooled_features_by_hand():
    view1, view2 = (
        Features(p, torch.randn(2, 3, 2), torch.ones(2, 3).bool()) for p in (torch.eye(2), tokens([3, 4], [0, 1]))
    )
    rows = [math.log(math.exp(1.2) + 1) - 1.2, math.log(math.exp(1.6) + math.exp(2)) - 2]
    columns = [math.log(math.exp(1.2) + math.exp(1.6)) - 1.2, math.log(1 + math.exp(2)) - 2]
    found = losses.intra_modal(view1, view2, torch.tensor(2.0), 0.1, by="pooled")
    assert float(found) == pytest.approx((sum(rows) + sum(columns)) / 4, rel=1e-5)


def test_coarse_averages_neighbours():
    t = torch.zeros(1, 16, 4)
    t[0, :, 0] = 1
    t[0, [0, 1, 4, 5]] = torch.tensor([0.0, 1, 0, 0])  # the upper left 2 x 2 block
    out = losses.coarse(Features(t[:, 0], t, torch.ones(1, 16).bool()), keep=4)
    assert torch.allclose(out.tokens[0], torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]))


@pytest.mark.parametrize("places, left", [(49, 16), (196, 16), (16, 16), (12, 12)])
def test_coarse_leaves_a_square_of_any_grid(places, left):
    t = torch.nn.functional.normalize(torch.rand(2, places, 8), dim=-1)
    out = losses.coarse(Features(t[:, 0], t, torch.ones(2, places).bool()), keep=16)
    assert out.tokens.shape == (2, left, 8) and out.mask.shape == (2, left)


def test_drop_words_is_a_shorter_caption(small):
    tokenizer = small[2]
    text = tokenizer(["a photo of a red star", "star", ""])
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        out = losses.drop_words(text, 0.9, generator)
        for before, after in zip(text.tolist(), out.tolist()):
            words = [w for w in after if w not in (0, 49406, 49407)]
            assert after[0] == 49406 and after[len(words) + 1] == 49407 and not any(after[len(words) + 2 :])
            had = [w for w in before if w not in (0, 49406, 49407)]
            assert (len(words) >= 1) == (len(had) >= 1)
            remaining = iter(had)
            assert all(w in remaining for w in words), "order is kept"
    assert torch.equal(losses.drop_words(text, 0.0), text)
