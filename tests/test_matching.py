"""Matching: pruned is brute, bounds are bounds, ranks are counts, and a pool is what was put into it last."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otclib import matching
from otclib.matching import CaptionPool, search
from otclib.matching.token_sets import Codebook, TokenSets
from otclib.models import Features
from otclib.transport import exact, sinkhorn

EXAMPLES = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def features(B, T, D, seed, lengths=True, spread=1.0, centres=None):
    """Token sets, of random length; with ``centres``, around these, as trained ones are."""
    g = torch.Generator().manual_seed(seed)
    tokens, pooled = torch.randn(B, T, D, generator=g), torch.randn(B, D, generator=g)
    if centres is not None:
        own = centres[torch.arange(B) % len(centres)]
        tokens, pooled = own[:, None] + spread * tokens, own + spread * pooled
    mask = torch.arange(T)[None] < torch.randint(1, T + 1, (B, 1), generator=g) if lengths else torch.ones(B, T).bool()
    return Features(F.normalize(pooled, dim=-1), F.normalize(tokens, dim=-1), mask)


def match(v, t, **options):
    how = {"image_mask": v.mask, "text_mask": t.mask, "image_pooled": v.pooled, "text_pooled": t.pooled}
    return matching.match(v.tokens, t.tokens, **how, **options)


@pytest.fixture(params=["compiled", "compiled, coded", "torch"])
def way(request, monkeypatch):
    """The searches: by the kernels, by the kernels with a codebook however few the captions, and by torch."""
    if request.param == "torch":
        monkeypatch.setattr(search, "compiled", lambda: None)
    if request.param == "compiled, coded":
        monkeypatch.setattr(search, "WORTH_CODING", -1)
    monkeypatch.setattr(search, "BLOCK", 16)
    monkeypatch.setattr("otclib.matching.token_sets.BLOCK", 16)
    return request.param


@EXAMPLES
@given(
    B=st.integers(1, 6),
    P=st.integers(1, 40),
    N=st.integers(1, 20),
    M=st.integers(1, 6),
    D=st.sampled_from([2, 5, 8, 40]),
    seed=st.integers(0, 9999),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    reg=st.sampled_from([1.0, 0.1, 0.01]),
    spread=st.sampled_from([None, 0.3, 3e-4, 1e-5, 0.0]),
    copies=st.integers(1, 12),
)
def test_pruned_is_brute(way, B, P, N, M, D, seed, weight, reg, spread, copies):
    """Random, around common centres, almost equal and equal: ties must go the same way."""
    centres = F.normalize(torch.randn(4, D, generator=torch.Generator().manual_seed(seed)), dim=-1)
    around = {} if spread is None else {"centres": centres, "spread": spread}
    v, t = (features(n, k, D, seed + i, **around) for i, (n, k) in enumerate(((B, N), (P, M))))
    t = t[torch.arange(P) % max(1, P // copies)]
    pruned, brute = (match(v, t, reg=reg, method=m, global_weight=weight) for m in ("pruned", "brute"))
    assert torch.allclose(pruned.distance, brute.distance, atol=1e-5)
    if way != "torch":
        assert torch.equal(pruned.distance, brute.distance) and torch.equal(pruned.index, brute.index)
    at = matching.distances(v, t, pruned.index[:, None], reg, weight)[:, 0]
    assert torch.allclose(at, brute.distance, atol=1e-5), "the caption named is one at the least distance"
    assert brute.solved == B * P and pruned.solved <= B * P
    assert (pruned.index < max(1, P // copies)).all() or way == "torch", "of equally near captions the first"


def test_padding_may_hold_anything(way):
    v, t = features(5, 6, 12, 1), features(60, 5, 12, 2)
    clean = match(v, t, reg=0.1, global_weight=0.3)
    for x in (v, t):
        x.tokens[~x.mask] = float("nan")
    for method in ("pruned", "brute"):
        dirty = match(v, t, reg=0.1, global_weight=0.3, method=method)
        assert torch.equal(clean.index, dirty.index) and torch.allclose(clean.distance, dirty.distance, atol=1e-6)


def test_both_ways_agree():
    v, t = features(6, 30, 24, 1), features(50, 9, 24, 2)
    few = torch.arange(50).expand(6, 50)
    compiled = matching.distances(v, t, few, 0.05, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "compiled", lambda: None)
        assert torch.allclose(matching.distances(v, t, few, 0.05, 0.3), compiled, atol=1e-4)
    for i, j in ((0, 0), (3, 17), (5, 49)):
        C = 1 - v.tokens[i][v.mask[i]] @ t.tokens[j][t.mask[j]].T
        cost = sinkhorn(C.double(), reg=0.05, tol=1e-9, max_iter=20_000).cost
        assert compiled[i, j] == pytest.approx(
            0.3 * (1 - v.pooled[i] @ t.pooled[j]).item() + 0.7 * cost.item(), abs=1e-4
        )


@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_the_fused_kernel_matches(monkeypatch):
    """As it would go on CUDA, in Triton's interpreter."""
    cuda = pytest.importorskip("otclib.matching.cuda")
    v, t = features(3, 20, 24, 1), features(9, 7, 24, 2)
    here = match(v, t, reg=0.05, global_weight=0.3)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(search, "compiled", lambda: None)
    monkeypatch.setattr(cuda, "available", lambda tensor: True)
    calls, real = [], cuda.pair_costs
    monkeypatch.setattr(cuda, "pair_costs", lambda *a, **k: calls.append(len(a[4])) or real(*a, **k))
    there = match(v, t, reg=0.05, global_weight=0.3)
    assert sum(calls) == there.solved > 0
    assert torch.equal(here.index, there.index) and torch.allclose(here.distance, there.distance, atol=1e-4)


def test_pruning_solves_few_problems(way):
    """On features with structure, as trained ones have: captions cluster around the images' means."""
    centres = F.normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    v, t = features(20, 9, 32, 1, False, 0.05, centres), features(400, 5, 32, 2, False, 0.05, centres)
    out = matching.match(v.tokens, t.tokens, reg=0.05)
    assert out.solved < 0.3 * 20 * 400
    assert (out.index % 20 == torch.arange(20)).all()


@EXAMPLES
@given(N=st.integers(1, 18), M=st.integers(1, 6), D=st.integers(2, 40), seed=st.integers(0, 9999))
def test_every_bound_is_below_exact_transport(N, M, D, seed):
    from otclib.matching import cpu as kernel

    v, t = TokenSets.of(features(2, N, D, seed)), TokenSets.of(features(3, M, D, seed + 1)).prepare()
    summaries = matching.lower_bound(v, t)
    codebook = Codebook.of(t, size=2)
    codes = torch.zeros(2, 3)
    kernel.raise_by_codes(codes, kernel.sorted_cosines(v, codebook.centroids), v, codebook, 0, 0.0)
    short = v.short(t.basis), t.short(t.basis)
    for i in range(2):
        for j in range(3):
            n, m = int(v.length[i]), int(t.length[j])
            cosines = t.tokens[j, :m] @ v.tokens[i, :n].T
            truth = exact(1 - cosines)[1] + 1e-5
            assert summaries[i, j] <= truth and codes[i, j] <= truth
            for S in (cosines, short[1][j, :m] @ short[0][i, :n].T):
                assert (S >= cosines - 1e-5).all(), "short tokens are never less alike"
                S = S.contiguous().numpy()
                assert kernel._words_relaxed(S, m, n) <= truth
                assert kernel._patches_relaxed(S, m, n, S[0].copy()) <= truth


@EXAMPLES
@given(seed=st.integers(0, 9999), reg=st.sampled_from([0.3, 0.05]), max_iter=st.sampled_from([1, 3, 300]))
def test_a_distance_is_a_cost_that_transport_can_have(way, seed, reg, max_iter):
    """However early the iteration is stopped, the rounded plan costs no less than the exact one."""
    v, t = features(2, 12, 6, seed), features(3, 4, 6, seed + 1)
    d = matching.distances(v, t, torch.arange(3).expand(2, 3), reg, tol=1e-6, max_iter=max_iter)
    for i in range(2):
        for j in range(3):
            assert d[i, j] >= exact(1 - v.tokens[i][v.mask[i]] @ t.tokens[j][t.mask[j]].T)[1] - 1e-5


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


def test_pooled_features_alone_need_no_plan(way, monkeypatch):
    """With ``global_weight`` 1 the ranks are those of the cosines, and no plan is solved, whatever the tokens are."""
    v, own, pool = features(6, 5, 8, 1), features(6, 4, 8, 3), features(30, 4, 8, 2)
    solved = matching.rank_own(v, own, pool, reg=0.1, share=1.0, global_weight=1 - 1e-6)
    monkeypatch.setattr(search, "_costs", None)
    for x in (v, own, pool):
        x.tokens = torch.full_like(x.tokens, torch.nan)
    ranking = matching.rank_own(v, own, pool, reg=0.1, share=1.0, global_weight=1.0)
    cosine = v.pooled @ pool.pooled.T
    nearer = (cosine > (v.pooled * own.pooled).sum(1, keepdim=True) + 1e-6).float().mean(1)
    assert torch.equal(ranking.own_rank, nearer) and torch.equal(ranking.own_rank, solved.own_rank)
    assert torch.equal(ranking.nearest, cosine.argmax(1)) and len(set(nearer.tolist())) > 2


def test_a_pool_fills_and_wraps():
    pool, t = CaptionPool(10, words=6, dim=8), features(16, 6, 8, 1)
    with pytest.raises(ValueError, match="empty"):
        pool.match(t, reg=0.1)
    assert pool.add(t[slice(0, 4)]).tolist() == [0, 1, 2, 3] and len(pool) == 4
    before = pool._all.tokens.data_ptr()
    pool.add(t[slice(4, 8)])
    assert pool.add(t[slice(8, 12)], ids=torch.tensor([108, 109, 110, 111])).tolist() == [8, 9, 0, 1]
    assert len(pool) == 10 and pool.ids.tolist() == [110, 111, 2, 3, 4, 5, 6, 7, 108, 109]
    assert pool._all.tokens.data_ptr() == before, "in place"
    # a caption's own tokens are nearest to it; what was overwritten is not found
    found = pool.match(t, reg=0.02, global_weight=0.5)
    here = [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.index[here].tolist() == list(range(10))
    now = match(t, t[here], reg=0.02, global_weight=0.5)
    assert torch.equal(found.index, now.index) and torch.equal(found.distance, now.distance)


def test_a_pool_of_all_or_of_a_sample():
    t = features(40, 5, 8, 1)
    assert len(CaptionPool.of(t)) == 40
    some = CaptionPool.of(t, ids=torch.arange(100, 140), sample=12, seed=3)
    assert len(some) == 12 and len(set(some.ids.tolist())) == 12 and (some.ids >= 100).all()
    assert torch.equal(CaptionPool.of(t, sample=12, seed=3).ids, some.ids - 100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pool_is_saved_and_loaded(tmp_path, dtype, monkeypatch):
    v, t = features(7, 12, 40, 1), features(30, 5, 40, 2)
    pool = CaptionPool.of(t, dtype=dtype)
    pool.save(tmp_path / "pool.safetensors")
    again = CaptionPool.load(tmp_path / "pool.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "pool.safetensors"]
    here, there = (p.match(v, reg=0.05, global_weight=0.3) for p in (pool, again))
    assert torch.equal(here.index, there.index) and torch.equal(here.distance, there.distance)
    brute = pool.match(v, reg=0.05, global_weight=0.3, method="brute")
    assert torch.equal(here.index, brute.index) and torch.equal(here.distance, brute.distance)
    monkeypatch.setattr(search, "WORTH_CODING", -1)
    coded = again.match(v, reg=0.05, global_weight=0.3)
    assert torch.equal(here.index, coded.index) and torch.equal(here.distance, coded.distance)
    exact_ = match(v, t, reg=0.05, global_weight=0.3)
    assert torch.allclose(here.distance, exact_.distance, atol=1e-6 if dtype == torch.float32 else 1e-3)
    assert (again.added, len(again)) == (30, 30) and torch.equal(again.add(t[:3]), torch.tensor([0, 1, 2]))


def test_memory_of_a_pool_is_what_it_says():
    half, single = (CaptionPool(100, 77, 512, dtype=d) for d in (torch.float16, torch.float32))
    assert single.bytes_per_caption - half.bytes_per_caption == 77 * 512 * 2
    t = TokenSets.of(features(100, 77, 512, 1, lengths=False), torch.float16)
    half.add(Features(t.pooled, t.tokens, t.real))
    half.match(features(2, 4, 512, 2), reg=0.1)
    kept = [half._all.tokens, half._all.length, half._all.summary, half.ids, half._ready.flat[0]]
    assert sum(x.numel() * x.element_size() for x in kept) == 100 * half.bytes_per_caption


def test_bad_input(tmp_path):
    v, t = torch.rand(2, 3, 4), torch.rand(5, 2, 4)
    with pytest.raises(ValueError, match="pruned"):
        matching.match(v, t, reg=0.1, method="fast")
    with pytest.raises(ValueError, match="tokens must be"):
        matching.match(v, torch.rand(5, 2, 3), reg=0.1)
    with pytest.raises(ValueError, match="at least one token"):
        matching.match(v, t, reg=0.1, text_mask=torch.zeros(5, 2).bool())
    with pytest.raises(ValueError, match="global_weight"):
        matching.match(v, t, reg=0.1, global_weight=0.5)
    with pytest.raises(ValueError, match="reg"):
        matching.match(v, t, reg=0.0)
    with pytest.raises(ValueError, match="finite"):
        matching.match(v, t / 0, reg=0.1)
    with pytest.raises(ValueError, match="bool mask"):
        matching.match(v, t, reg=0.1, text_mask=torch.ones(5, 2))
    a, b = features(2, 3, 4, 1), features(5, 2, 4, 2)
    for candidates in (torch.full((2, 1), 5), torch.full((2, 1), -1), torch.zeros(3, 1).long(), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="candidates must"):
            matching.distances(a, b, candidates, 0.1)
    assert matching.distances(a, b, torch.zeros(2, 1, dtype=torch.int32), 0.1).shape == (2, 1)
    filled = CaptionPool.of(b)
    with pytest.raises(ValueError, match="images have tokens of 5"):
        filled.match(features(2, 3, 5, 1), reg=0.1)
    for wrong, words in ((float("nan"), "finite"), (None, "at least one token")):
        bad = features(2, 3, 4, 1)
        if wrong is None:
            bad.mask[1] = False
        else:
            bad.tokens[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=words):
            filled.match(bad, reg=0.1)
    with pytest.raises(ValueError, match="needs captions"):
        CaptionPool.of(b, sample=0)
    with pytest.raises(ValueError, match="no caption"):
        matching.match(v, t[:0], reg=0.1)
    with pytest.raises(ValueError, match="float16"):
        CaptionPool(4, 4, 4, dtype=torch.float64)
    pool = CaptionPool(4, words=3, dim=8)
    for bad in (features(5, 3, 8, 1), features(2, 4, 8, 1, lengths=False), features(2, 3, 9, 1)):
        with pytest.raises(ValueError, match="the pool takes"):
            pool.add(bad)
    with pytest.raises(ValueError, match="ids"):
        pool.add(features(2, 3, 8, 1), ids=torch.arange(3))
    assert len(pool) == 0, "nothing was half added"
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "y")
    with pytest.raises(ValueError, match="not a caption pool"):
        CaptionPool.load(tmp_path / "y")
