"""Matching: pruned is brute, bounds are bounds, ranks are counts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from otclib import matching
from otclib.models import Features
from otclib.transport import exact


def features(B, T, D, seed, lengths=True):
    g = torch.Generator().manual_seed(seed)
    tokens = F.normalize(torch.randn(B, T, D, generator=g), dim=-1)
    mask = torch.arange(T)[None] < torch.randint(1, T + 1, (B, 1), generator=g) if lengths else torch.ones(B, T).bool()
    return Features(F.normalize(torch.randn(B, D, generator=g), dim=-1), tokens, mask)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(2, 8),
    st.integers(0, 9999),
    st.sampled_from([0.0, 0.5]),
)
def test_pruned_is_brute(B, P, N, M, D, seed, weight):
    v, t = features(B, N, D, seed), features(P, M, D, seed + 1)
    t = t[torch.arange(P) % max(1, P // 2)]  # duplicates: ties must go the same way
    both = [
        matching.match(
            v.tokens,
            t.tokens,
            image_mask=v.mask,
            text_mask=t.mask,
            reg=0.1,
            method=method,
            image_pooled=v.pooled,
            text_pooled=t.pooled,
            global_weight=weight,
        )
        for method in ("pruned", "brute")
    ]
    assert torch.allclose(both[0].distance, both[1].distance, atol=1e-5)
    at = matching.distances(v, t, both[0].index[:, None], 0.1, weight)[:, 0]
    assert torch.allclose(at, both[1].distance, atol=1e-5), "the caption named is one at the least distance"
    assert both[1].solved == B * P and both[0].solved <= B * P


def test_pruning_solves_few_problems():
    """On features with structure, as trained ones have: captions cluster around the images' means."""
    g = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(20, 32, generator=g), dim=-1)
    v = F.normalize(centres[:, None] + 0.05 * torch.randn(20, 9, 32, generator=g), dim=-1)
    t = F.normalize(centres.repeat(20, 1)[:, None] + 0.05 * torch.randn(400, 5, 32, generator=g), dim=-1)
    out = matching.match(v, t, reg=0.05)
    assert out.solved < 0.3 * 20 * 400
    assert (out.index % 20 == torch.arange(20)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 6), st.integers(0, 9999))
def test_the_bound_is_below_exact_transport(N, M, D, seed):
    v, t = features(2, N, D, seed), features(3, M, D, seed + 1)
    bound = matching.lower_bound(v, t)
    for i in range(2):
        for j in range(3):
            C = 1 - v.tokens[i] @ t.tokens[j].T
            truth = exact(C, v.mask[i].float(), t.mask[j].float())[1]
            assert bound[i, j] <= truth + 1e-5


def test_rank_own_counts_nearer_captions():
    v, pool = features(4, 5, 8, 1), features(30, 4, 8, 2)
    own = features(4, 4, 8, 3)
    full = matching.distances(v, pool, torch.arange(30).expand(4, 30), 0.1, 0.5)
    own_d = matching.distances(v, own, torch.arange(4)[:, None], 0.1, 0.5)[:, 0]
    ranking = matching.rank_own(v, own, pool, reg=0.1, share=1.0, global_weight=0.5)
    nearer = (full < own_d[:, None] - 1e-6).float().mean(1)
    assert torch.allclose(ranking.own_distance, own_d, atol=1e-3)
    assert torch.allclose(ranking.own_rank, nearer, atol=0.04), "at most one near-tie of 30 falls the other way"
    assert torch.equal(ranking.nearest, full.argmin(1))


def test_bad_input():
    v, t = torch.rand(2, 3, 4), torch.rand(5, 2, 4)
    with pytest.raises(ValueError, match="pruned"):
        matching.match(v, t, reg=0.1, method="fast")
    with pytest.raises(ValueError, match="tokens must be"):
        matching.match(v, torch.rand(5, 2, 3), reg=0.1)
    with pytest.raises(ValueError, match="at least one token"):
        matching.match(v, t, reg=0.1, text_mask=torch.zeros(5, 2).bool())
    with pytest.raises(ValueError, match="global_weight"):
        matching.match(v, t, reg=0.1, global_weight=0.5)
