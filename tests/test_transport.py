"""Sinkhorn against its own definition, against POT, and against exact transport."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from otclib.transport import exact, sinkhorn

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 7), st.integers(0, 10_000))


def problem(B, N, M, seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    cost = scale * 2 * torch.rand(B, N, M, generator=g, dtype=torch.float64)
    return cost, 0.1 + torch.rand(B, N, generator=g).double(), 0.1 + torch.rand(B, M, generator=g).double()


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([1.0, 0.1, 0.05]))
def test_marginals(size, reg):
    C, a, b = problem(*size)
    out = sinkhorn(C, a, b, reg=reg, tol=1e-8, max_iter=5000)
    P = out.plan
    error = (P.sum(2) - a / a.sum(1, keepdim=True)).abs().sum(1) + (P.sum(1) - b / b.sum(1, keepdim=True)).abs().sum(1)
    assert torch.allclose(error, out.marginal_error, atol=1e-9)
    assert ((error <= 1e-8) == out.converged).all()
    assert (P >= 0).all() and torch.allclose(out.cost, (P * C).sum((1, 2)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.1, 0.05]))
def test_agrees_with_pot(seed, reg):
    C, a, b = problem(3, 7, 5, seed)
    ours = sinkhorn(C, a, b, reg=reg, tol=1e-10, max_iter=20_000)
    for k in range(3):
        weights = [(w[k] / w[k].sum()).numpy() for w in (a, b)]
        plan = ot.sinkhorn(*weights, C[k].numpy(), reg, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
        assert np.allclose(ours.plan[k].numpy(), plan, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_never_below_the_exact_cost_and_tends_to_it(size):
    C, a, b = problem(*size)
    truth = torch.stack([exact(C[k], a[k], b[k])[1] for k in range(len(C))])
    loose, tight = (sinkhorn(C, a, b, reg=r, tol=1e-7, max_iter=20_000) for r in (0.3, 0.01))
    assert (loose.cost >= truth - 1e-5).all() and (tight.cost >= truth - 1e-5).all()
    assert (tight.cost - truth <= 0.01 * np.log(max(2, C.shape[1] * C.shape[2])) + 1e-5).all()


def test_symmetry_permutation_and_shift():
    C, a, b = problem(2, 6, 4, 1)
    P = sinkhorn(C, a, b, reg=0.1, tol=1e-9, max_iter=5000).plan
    assert torch.allclose(
        sinkhorn(C.transpose(1, 2), b, a, reg=0.1, tol=1e-9, max_iter=5000).plan, P.transpose(1, 2), atol=1e-7
    )
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(
        sinkhorn(C[:, order], a[:, order], b, reg=0.1, tol=1e-9, max_iter=5000).plan, P[:, order], atol=1e-7
    )
    shifted = sinkhorn(C + torch.rand(2, 6, 1), a, b, reg=0.1, tol=1e-9, max_iter=5000)
    assert torch.allclose(shifted.plan, P, atol=1e-7)


@pytest.mark.parametrize("reg", [0.1, 0.001])
def test_padding_is_no_padding(reg):
    C, a, b = problem(2, 5, 4, 2)
    padded_C = torch.cat([torch.cat([C, torch.rand(2, 5, 3)], 2), torch.full((2, 2, 7), 50.0)], 1)
    pad_a, pad_b = torch.cat([a, torch.zeros(2, 2)], 1), torch.cat([b, torch.zeros(2, 3)], 1)
    plain = sinkhorn(C, a, b, reg=reg, tol=1e-9, max_iter=3000)
    padded = sinkhorn(padded_C, pad_a, pad_b, reg=reg, tol=1e-9, max_iter=3000)
    assert torch.allclose(padded.plan[:, :5, :4], plain.plan, atol=1e-7)
    assert (padded.plan[:, 5:] == 0).all() and (padded.plan[:, :, 4:] == 0).all()


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_finite_for_any_reg(reg, scale):
    C, a, b = problem(8, 16, 12, 3, scale)
    out = sinkhorn(C.float(), a, b, reg=reg, max_iter=500)
    assert torch.isfinite(out.plan).all() and torch.isfinite(out.cost).all()
    assert (out.converged == (out.marginal_error <= 1e-4)).all()


def test_one_hard_problem_does_not_touch_the_others():
    C, a, b = (x.float() for x in problem(64, 16, 12, 4))
    alone = sinkhorn(C, a, b, reg=0.1, max_iter=2000)
    C[7] *= 30
    out = sinkhorn(C, a, b, reg=0.1, max_iter=2000)
    others = torch.arange(64) != 7
    assert out.n_iter[7] > 3 * alone.n_iter[7]
    assert (out.n_iter - alone.n_iter)[others].abs().max() <= 5
    assert torch.allclose(out.plan[others], alone.plan[others], atol=1e-4)


def test_gradient_is_the_plan():
    C, a, b = problem(2, 4, 3, 5)
    C.requires_grad_()
    out = sinkhorn(C, a, b, reg=0.1)
    out.cost.sum().backward()
    assert torch.allclose(C.grad, out.plan) and not out.plan.requires_grad
    with torch.no_grad():
        assert not sinkhorn(C, a, b, reg=0.1).cost.requires_grad


def test_gradient_of_the_regularised_value_by_finite_differences():
    """Envelope theorem: d/dC of min <P, C> - reg H(P) is P."""
    C, a, b = (x[0] for x in problem(1, 3, 4, 6))

    def value(cost):
        P = sinkhorn(cost, a, b, reg=0.2, tol=1e-12, max_iter=20_000).plan
        return (P * cost).sum() + 0.2 * (P * (P.log() - 1)).sum()

    P = sinkhorn(C, a, b, reg=0.2, tol=1e-12, max_iter=20_000).plan
    for n, m in ((0, 0), (1, 3), (2, 2)):
        step = torch.zeros_like(C)
        step[n, m] = 1e-5
        assert abs((value(C + step) - value(C - step)) / 2e-5 - P[n, m]) < 1e-6


def test_shapes_and_dtypes():
    single = sinkhorn(torch.rand(4, 3), reg=0.1)
    assert single.plan.shape == (4, 3) and single.cost.ndim == 0 and single.potentials[0].shape == (4,)
    assert sinkhorn(torch.rand(2, 4, 3).bfloat16(), reg=0.1).plan.dtype == torch.float32
    assert sinkhorn(torch.rand(0, 4, 3), reg=0.1).plan.shape == (0, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sinkhorn(torch.rand(2, 4, 3), reg=0.1).converged.all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(cost=torch.rand(3)), "shape"),
        (dict(cost=torch.rand(2, 3, 0)), "shape"),
        (dict(cost=torch.tensor([[1.0, float("nan")]])), "finite"),
        (dict(cost=torch.rand(2, 3), reg=0.0), "reg"),
        (dict(cost=torch.rand(2, 3), reg=float("nan")), "reg"),
        (dict(cost=torch.rand(2, 3), a=torch.rand(3)), "weights a"),
        (dict(cost=torch.rand(2, 3), b=torch.tensor([1.0, -1.0, 1.0])), "weights b"),
        (dict(cost=torch.rand(2, 3), a=torch.zeros(2)), "weights a"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        sinkhorn(**{"reg": 0.1, **arguments})
