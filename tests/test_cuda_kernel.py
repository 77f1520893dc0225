"""The fused kernel against a float64 Sinkhorn written out here, and against exact transport.

Without a GPU the kernel runs in Triton's interpreter.
"""

import math

import ot
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from otclib.matching import cuda
from otclib.matching.cuda import available, pair_costs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, COLS = [0, 1, 2, 0, 1, 0], [0, 1, 2, 2, 3, 0]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # log 0 = -inf at padding
]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def problem(N, M, D, dtype=torch.float32, seed=0, device=DEVICE):
    """Three images, four captions, ragged: some full, some of one token."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(D, generator=g)
    x, y = (F.normalize(torch.randn(B, s, D, generator=g) + 0.5 * common, dim=-1) for B, s in ((3, N), (4, M)))
    lengths = torch.tensor([N, (N + 1) // 2, 1]), torch.tensor([M, 1, (M + 2) // 3, M], dtype=torch.int32)
    tensors = (x.to(dtype), lengths[0], y.to(dtype), lengths[1], torch.tensor(ROWS), torch.tensor(COLS))
    return [t.to(device) for t in tensors]


def costs(tensors):
    """The cost matrix of every pair in float64, without padding."""
    x, x_length, y, y_length, rows, cols = (t.cpu() for t in tensors)
    return [1 - x[i, : x_length[i]].double() @ y[j, : y_length[j]].double().T for i, j in zip(rows, cols)]


def feasible_cost(P, C):
    """<P', C> with P' the plan of Algorithm 2 of Altschuler, Weed and Rigollet."""
    a, b = 1 / P.shape[0], 1 / P.shape[1]
    P = P * (a / P.sum(1, keepdim=True)).clamp(max=1)
    P = P * (b / P.sum(0)).clamp(max=1)
    lack_a, lack_b = a - P.sum(1), b - P.sum(0)
    return float((P * C).sum() + lack_a @ C @ lack_b / lack_a.sum().clamp(min=1e-30))


def reference(C, reg, tol=1e-7, max_iter=3000):
    log_a, log_b = -math.log(C.shape[0]), -math.log(C.shape[1])
    g = torch.zeros(C.shape[1], dtype=torch.float64)
    for _ in range(max_iter):
        f = log_a - torch.logsumexp(g - C / reg, 1)
        g = log_b - torch.logsumexp(f[:, None] - C / reg, 0)
        P = torch.exp(f[:, None] + g - C / reg)
        if (P.sum(1) - 1 / len(P)).abs().sum() <= tol:
            break
    return feasible_cost(P, C)


@pytest.mark.parametrize("reg", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("shape", [(49, 77, 64), (64, 16, 48), (5, 3, 20), (1, 1, 7)])
def test_agrees_with_the_definition(shape, reg):
    tensors = problem(*shape)
    out = pair_costs(*tensors, reg=reg, tol=1e-5, max_iter=500)
    assert out.cost.dtype == out.marginal_error.dtype == torch.float32 and out.n_iter.dtype == torch.int32
    assert (out.marginal_error <= 1e-4).all() and (out.n_iter >= 1).all() and out.f is out.g is None
    assert out.cost.tolist() == pytest.approx([reference(C, reg) for C in costs(tensors)], abs=1e-4)


def test_agrees_at_a_regularisation_of_a_thousandth():
    tensors = problem(5, 3, 20)
    out = pair_costs(*tensors, reg=1e-3, max_iter=2000)
    assert torch.isfinite(out.cost).all()
    assert out.cost.tolist() == pytest.approx([reference(C, 1e-3, 1e-5) for C in costs(tensors)], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(49, 77, 64), (64, 16, 80)])
def test_half_precision_tokens_are_summed_in_float32(shape, dtype):
    tensors = problem(*shape, dtype)
    out = pair_costs(*tensors, reg=0.05, tol=1e-5)
    assert out.cost.tolist() == pytest.approx([reference(C, 0.05) for C in costs(tensors)], abs=1e-4)


@pytest.mark.parametrize("reg", [0.1, 0.02, 0.001])
@pytest.mark.parametrize("max_iter", [1, 4])
def test_never_below_the_exact_cost(reg, max_iter):
    for tensors in (problem(9, 14, 24, seed=1), problem(14, 9, 24, seed=2)):
        out = pair_costs(*tensors, reg=reg, tol=0.0, max_iter=max_iter)
        assert (out.n_iter <= max_iter).all()  # less where the error is exactly zero
        for cost, C in zip(out.cost.tolist(), costs(tensors)):
            assert cost >= ot.emd2([], [], C.numpy()) - 2e-6


@pytest.mark.parametrize("reg", [0.05, 0.02])
def test_a_pair_stops_when_its_marginals_are_right(reg):
    tensors = problem(12, 20, 24)
    out = {tol: pair_costs(*tensors, reg=reg, tol=tol) for tol in (1e-2, 1e-4)}
    for tol, o in out.items():
        assert (o.marginal_error <= tol).all() and (o.n_iter < 1000).all()
    assert (out[1e-2].n_iter <= out[1e-4].n_iter).all() and out[1e-2].n_iter[0] < out[1e-4].n_iter[0]


@pytest.mark.parametrize("reg", [0.1, 0.02])
def test_padding_is_never_read(reg):
    tensors = problem(12, 20, 24)
    before = pair_costs(*tensors, reg=reg)
    for tokens, length in (tensors[:2], tensors[2:4]):
        tokens[torch.arange(tokens.shape[1], device=DEVICE) >= length[:, None]] = 1e4
    after = pair_costs(*tensors, reg=reg)
    assert torch.equal(before.cost, after.cost) and torch.equal(before.n_iter, after.n_iter)


@pytest.mark.parametrize("shape", [(12, 20, 24), (20, 12, 24)])
@pytest.mark.parametrize("reg", [0.1, 0.02])
def test_potentials_give_the_plan(shape, reg):
    tensors = problem(*shape)
    out = pair_costs(*tensors, reg=reg, max_iter=5, potentials=True)
    assert out.f.shape == (6, shape[0]) and out.g.shape == (6, shape[1])
    for k, C in enumerate(costs(tensors)):
        f, g = out.f[k].cpu().double(), out.g[k].cpu().double()
        assert (f[C.shape[0] :] == -torch.inf).all() and (g[C.shape[1] :] == -torch.inf).all()
        P = torch.exp((f[: C.shape[0], None] + g[: C.shape[1]] - C) / reg)
        error = (P.sum(1) - 1 / C.shape[0]).abs().sum() + (P.sum(0) - 1 / C.shape[1]).abs().sum()
        assert float(error) == pytest.approx(float(out.marginal_error[k]), abs=2e-5)
        assert feasible_cost(P, C) == pytest.approx(float(out.cost[k]), abs=2e-5)


def test_pairs_do_not_depend_on_their_neighbours():
    *sets, rows, cols = problem(12, 20, 24)
    out = pair_costs(*sets, rows, cols, reg=0.05)
    assert out.cost[0] == out.cost[-1]
    back = pair_costs(*sets, rows.flip(0), cols.flip(0), reg=0.05)
    assert torch.equal(out.cost.flip(0), back.cost)
    assert pair_costs(*sets, rows[:0], cols[:0], reg=0.05).cost.shape == (0,)


@pytest.mark.parametrize(
    "place, change, message",
    [
        (0, lambda t: t[0], "tokens and lengths"),
        (1, lambda t: t[:2], "tokens and lengths"),
        (2, lambda t: t[..., :5], "tokens and lengths"),
        (0, lambda t: t.half(), "tokens must both"),
        (1, lambda t: t.float(), "lengths must be int32 or int64"),
        (1, lambda t: t + 1, "image_length must lie in 1 ... 12, got 2 ... 13"),
        (3, lambda t: t * 0, "text_length must lie in 1 ... 20"),
        (4, lambda t: t.int(), "rows and cols"),
        (5, lambda t: t[1:], "rows and cols"),
        (4, lambda t: t + 1, "rows must lie in 0 ... 2, got 1 ... 3"),
        (5, lambda t: t - 1, "cols must lie in 0 ... 3, got -1 ... 2"),
        (3, lambda t: t.to("meta"), "one device"),
    ],
)
def test_bad_tensors_are_refused(place, change, message):
    tensors = problem(12, 20, 24)
    tensors[place] = change(tensors[place])
    with pytest.raises(ValueError, match=message):
        pair_costs(*tensors, reg=0.1)


def test_bad_settings_are_refused(monkeypatch):
    tensors = problem(12, 20, 24)
    with pytest.raises(ValueError, match="reg must be positive .* got 0 and 1000"):
        pair_costs(*tensors, reg=0)
    with pytest.raises(ValueError, match="max_iter at least 1, got 0.1 and 0"):
        pair_costs(*tensors, reg=0.1, max_iter=0)
    with pytest.raises(ValueError, match="300 x 100 tokens"):
        pair_costs(*problem(300, 100, 8), reg=0.1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs CUDA tensors .* got cpu"):
        pair_costs(*problem(12, 20, 24, device="cpu"), reg=0.1)
    monkeypatch.setattr(cuda, "triton", None)
    with pytest.raises(ValueError, match="needs Triton"):
        pair_costs(*tensors, reg=0.1)


def test_available_asks_for_cuda_and_triton(monkeypatch):
    assert not available(torch.zeros(1))
    assert available(torch.zeros(1, device=DEVICE)) == (DEVICE == "cuda")
    monkeypatch.setattr(cuda, "triton", None)
    assert not available(torch.zeros(1, device=DEVICE))
