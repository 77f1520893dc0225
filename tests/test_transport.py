"""Sinkhorn against its definition, against POT, and against exact transport: as compiled and as written in torch."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otclib import transport
from otclib.transport import exact, sinkhorn

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(0, 10_000))
REGS = st.sampled_from([1.0, 0.1, 0.05, 0.01])
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["compiled", "torch", "float64"])
def dtype(request, monkeypatch):
    """The three ways to a solution: Numba (float32), torch in float32, torch in float64."""
    if request.param == "torch":
        monkeypatch.setattr(transport, "compiled", lambda: None)
    elif request.param == "compiled":
        assert transport.compiled(), "Numba is installed with otclib"
    return torch.float64 if request.param == "float64" else torch.float32


def problem(B, N, M, seed, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    cost = scale * 2 * torch.rand(B, N, M, generator=g, dtype=torch.float64)
    a, b = 0.1 + torch.rand(B, N, generator=g).double(), 0.1 + torch.rand(B, M, generator=g).double()
    return cost.to(dtype), a.to(dtype), b.to(dtype)


def fine(dtype):
    """A tolerance that the dtype can reach, and what is then left between two solutions."""
    return (1e-9, 1e-7) if dtype == torch.float64 else (2e-6, 2e-5)


def marginal_error(P, a, b):
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    return (P.sum(-1) - a).abs().sum(-1) + (P.sum(-2) - b).abs().sum(-1)


@EXAMPLES
@given(size=SIZES, reg=REGS)
def test_marginals(dtype, size, reg):
    C, a, b = problem(*size, dtype)
    tol, close = fine(dtype)
    out = sinkhorn(C, a, b, reg=reg, tol=tol, max_iter=2000)
    assert torch.allclose(marginal_error(out.plan, a, b), out.marginal_error, atol=close)
    assert ((out.marginal_error <= tol) == out.converged).all()
    assert (out.plan >= 0).all() and torch.allclose(out.cost, (out.plan * C).sum((1, 2)), atol=close)
    f, g = out.potentials
    assert torch.allclose(torch.exp((f[:, :, None] + g[:, None] - C) / reg).to(dtype), out.plan, atol=close)


@EXAMPLES
@given(seed=st.integers(0, 1000), reg=st.sampled_from([0.5, 0.1, 0.05]))
def test_agrees_with_pot(dtype, seed, reg):
    C, a, b = problem(3, 7, 5, seed, dtype)
    tol, close = fine(dtype)
    ours = sinkhorn(C, a, b, reg=reg, tol=tol, max_iter=20_000)
    for k in range(3):
        weights = [(w[k].double() / w[k].double().sum()).numpy() for w in (a, b)]
        how = {"method": "sinkhorn_log", "stopThr": 1e-12, "numItermax": 20_000}
        plan = ot.sinkhorn(*weights, C[k].double().numpy(), reg, **how)
        assert np.allclose(ours.plan[k].numpy(), plan, atol=max(close, 20 * float(ours.marginal_error[k])))


@EXAMPLES
@given(size=SIZES)
def test_never_below_the_exact_cost_and_tends_to_it(dtype, size):
    C, a, b = problem(*size, dtype)
    truth = torch.stack([exact(C[k], a[k], b[k])[1] for k in range(len(C))])
    for reg in (0.3, 0.01):
        out = sinkhorn(C, a, b, reg=reg, tol=1e-5, max_iter=5000)
        # what the marginals still lack may have been moved for nothing
        assert (out.cost >= truth - out.marginal_error * C.amax() - 1e-5).all()
        bound = reg * np.log(max(2, C.shape[1] * C.shape[2]))
        assert (out.cost - truth <= bound + out.marginal_error * C.amax() + 1e-5).all()


@EXAMPLES
@given(size=SIZES, reg=REGS)
def test_symmetry_permutation_and_shift(dtype, size, reg):
    C, a, b = problem(*size, dtype)
    rng = torch.Generator().manual_seed(size[3])
    order = torch.randperm(C.shape[1], generator=rng)
    shift = torch.rand(len(C), C.shape[1], 1, generator=rng).to(dtype)
    tol, _ = fine(dtype)
    out, turned, permuted, shifted = (
        sinkhorn(*x, reg=reg, tol=tol, max_iter=5000)
        for x in ((C, a, b), (C.transpose(1, 2), b, a), (C[:, order], a[:, order], b), (C + shift, a, b))
    )
    for other, plan in ((turned, turned.plan.transpose(1, 2)), (permuted, permuted.plan), (shifted, shifted.plan)):
        wanted = out.plan[:, order] if other is permuted else out.plan
        slow = 1e-4 + 50 * (out.marginal_error + other.marginal_error)  # where 5000 iterations were too few
        assert ((plan - wanted).abs().amax((1, 2)) <= slow).all()


@EXAMPLES
@given(size=SIZES, reg=st.sampled_from([1.0, 0.1, 0.02]), where=st.sampled_from(["end", "middle"]))
def test_padding_is_no_padding(dtype, size, reg, where):
    C, a, b = problem(*size, dtype)
    B, N, M = C.shape
    rows, cols = torch.arange(N), torch.arange(M)
    if where == "middle":
        rows, cols = 2 * rows, 2 * cols
    big_C = torch.full((B, 2 * N + 1, 2 * M + 1), float("inf"), dtype=dtype)  # padding may hold anything
    big_a, big_b = torch.zeros(B, 2 * N + 1, dtype=dtype), torch.zeros(B, 2 * M + 1, dtype=dtype)
    big_C[:, rows[:, None], cols], big_a[:, rows], big_b[:, cols] = C, a, b
    plain, padded = (sinkhorn(*x, reg=reg, max_iter=2000) for x in ((C, a, b), (big_C, big_a, big_b)))
    assert torch.allclose(padded.plan[:, rows[:, None], cols], plain.plan, atol=1e-5)
    assert float(padded.plan.sum() - padded.plan[:, rows[:, None], cols].sum()) == pytest.approx(0, abs=1e-5)
    assert torch.isinf(padded.potentials[0]).sum() == B * (N + 1)


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("weights", ["usual", "tiny"])
def test_finite_and_honest_for_any_reg(dtype, reg, scale, weights):
    C, a, b = problem(8, 16, 12, 3, dtype, scale)
    if weights == "tiny":
        a[:, 0], b[:, 3] = 1e-20, 1e-12
    out = sinkhorn(C, a, b, reg=reg, max_iter=300)
    assert torch.isfinite(out.plan).all() and torch.isfinite(out.cost).all()
    assert (out.converged == (out.marginal_error <= 1e-4)).all()
    error = marginal_error(out.plan.double(), a.double(), b.double()).to(dtype)
    rounding = 1e-3 if dtype == torch.float32 and transport.compiled() is None and scale / reg > 1e3 else 1e-5
    assert torch.allclose(error, out.marginal_error, atol=rounding)


def test_one_hard_problem_does_not_touch_the_others(dtype):
    C, a, b = problem(64, 16, 12, 4, dtype)
    alone = sinkhorn(C, a, b, reg=0.1, max_iter=2000)
    C = torch.cat([C[:7], 30 * C[7:8], C[8:]])
    out = sinkhorn(C, a, b, reg=0.1, max_iter=2000)
    others = torch.arange(64) != 7
    assert out.n_iter[7] > 3 * alone.n_iter[7]
    assert (out.n_iter - alone.n_iter)[others].abs().max() <= 5
    assert torch.allclose(out.plan[others], alone.plan[others], atol=1e-4)


def test_the_cost_is_differentiable_and_its_gradient_the_plan(dtype):
    C, a, b = problem(2, 4, 3, 5, dtype)
    C.requires_grad_()
    out = sinkhorn(C, a, b, reg=0.1)
    (out.cost * torch.tensor([1.0, 3.0], dtype=dtype)).sum().backward()
    assert torch.allclose(C.grad, out.plan * torch.tensor([1.0, 3.0], dtype=dtype)[:, None, None], atol=1e-7)
    assert not out.plan.requires_grad
    with torch.no_grad():
        assert not sinkhorn(C, a, b, reg=0.1).cost.requires_grad


@pytest.mark.parametrize("unbalanced", [None, 0.5, (None, 0.2)])
def test_gradcheck_of_the_optimum(unbalanced):
    """Envelope theorem: the derivative of min <P, C> - eps H(P) + rho KL in C is P."""
    C, a, b = problem(2, 3, 4, 6)

    def optimum(C):
        return sinkhorn(C, a, b, reg=0.2, tol=1e-13, max_iter=20_000, unbalanced=unbalanced).value

    assert torch.autograd.gradcheck(optimum, C.requires_grad_())


def test_the_optimum_is_what_it_says():
    C, a, b = problem(2, 3, 4, 6)
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    for rho in (None, 0.3):
        out = sinkhorn(C, a, b, reg=0.2, tol=1e-12, max_iter=20_000, unbalanced=rho)
        P = out.plan
        value = (P * C).sum((1, 2)) + 0.2 * (P * (P.log() - 1)).sum((1, 2))
        for sums, w in ((P.sum(2), a), (P.sum(1), b)):
            value = value + (0 if rho is None else rho * (sums * (sums / w).log() - sums + w).sum(1))
        assert torch.allclose(out.value, value, atol=1e-9)


def test_unbalanced_between_staying_at_home_and_meeting_the_marginals():
    C, a, b = problem(3, 6, 5, 7)
    C[:, :, 4] += 5.0  # a word like "of": nothing is near it
    balanced = sinkhorn(C, a, b, reg=0.05, tol=1e-9, max_iter=5000)
    nearly = sinkhorn(C, a, b, reg=0.05, tol=1e-9, max_iter=200_000, unbalanced=1e3)
    loose = sinkhorn(C, a, b, reg=0.05, tol=1e-9, max_iter=5000, unbalanced=0.3)
    words = sinkhorn(C, a, b, reg=0.05, tol=1e-9, max_iter=5000, unbalanced=(None, 0.3))
    assert torch.allclose(nearly.plan, balanced.plan, atol=1e-2)
    assert loose.converged.all() and words.converged.all()
    assert (loose.plan[:, :, 4].sum(1) < 0.01 * balanced.plan[:, :, 4].sum(1)).all()
    assert (loose.plan.sum((1, 2)) < 1).all(), "mass stays at home"
    assert torch.allclose(words.plan.sum(2), a / a.sum(1, keepdim=True), atol=1e-8), "the balanced side is met"
    pot = ot.unbalanced.sinkhorn_unbalanced(
        *((w[0] / w[0].sum()).numpy() for w in (a, b)), C[0].numpy(), 0.05, 0.3, reg_type="entropy", stopThr=1e-12,
        numItermax=20_000,
    )  # fmt: skip
    assert np.allclose(loose.plan[0].numpy(), pot, atol=1e-6)


def test_all_pairs_of_two_batches_without_a_copy():
    """A product of token sets, seen as [A, B, N, M]: strides, broadcast weights, and gradients of the same layout."""
    v, t = torch.rand(3, 5, 8), torch.rand(4, 6, 8)
    S = (v.reshape(15, 8) @ t.reshape(24, 8).T).requires_grad_()
    C = S.view(3, 5, 4, 6).transpose(1, 2)
    a, b = torch.rand(3, 1, 5) + 0.1, torch.rand(1, 4, 6) + 0.1
    out = sinkhorn(C, a, b, reg=0.1)
    flat = sinkhorn(C.reshape(12, 5, 6), a.expand(3, 4, 5).reshape(12, 5), b.expand(3, 4, 6).reshape(12, 6), reg=0.1)
    assert out.cost.shape == (3, 4) and torch.allclose(out.cost.flatten(), flat.cost)
    assert torch.allclose(out.plan.reshape(12, 5, 6), flat.plan) and out.plan.stride() == C.stride()
    out.cost.sum().backward()
    assert torch.allclose(S.grad, out.plan.transpose(1, 2).reshape(15, 24))


def test_a_plan_is_of_the_cost_that_was_solved(dtype):
    C, a, b = problem(2, 4, 3, 5, dtype)
    out = sinkhorn(C, a, b, reg=0.1)
    before, late = out.plan, sinkhorn(C, a, b, reg=0.1)
    C.mul_(3)
    assert out.plan is before
    with pytest.raises(RuntimeError, match="changed in place"):
        late.plan  # noqa: B018


def test_the_scale_of_weights_does_not_matter(dtype):
    C, a, b = problem(2, 4, 3, 5, dtype)
    plain, huge = sinkhorn(C, a, b, reg=0.1), sinkhorn(C, a * 1e38, b * 1e-30, reg=0.1)
    assert torch.allclose(plain.plan, huge.plan, atol=1e-6) and torch.allclose(plain.value, huge.value, atol=1e-5)
    free = sinkhorn(C, a, b, reg=0.1, unbalanced=float("inf"))
    assert torch.allclose(plain.plan, free.plan, atol=1e-6)


def test_shapes_and_dtypes(dtype):
    single = sinkhorn(torch.rand(4, 3, dtype=dtype), reg=0.1)
    assert single.plan.shape == (4, 3) and single.cost.ndim == 0 and single.potentials[0].shape == (4,)
    assert sinkhorn(torch.rand(2, 4, 3).bfloat16(), reg=0.1).plan.dtype == torch.float32
    assert sinkhorn(torch.rand(0, 4, 3, dtype=dtype), reg=0.1).plan.shape == (0, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sinkhorn(torch.rand(2, 4, 3, dtype=dtype), reg=0.1)
        assert out.converged.all() and out.cost.dtype == dtype
    half = torch.rand(2, 4, 3).half().requires_grad_()
    sinkhorn(half, reg=0.1).cost.sum().backward()
    assert half.grad.dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(cost=torch.rand(3)), "shape"),
        (dict(cost=torch.rand(2, 3, 0)), "shape"),
        (dict(cost=torch.ones(2, 3, dtype=torch.long)), "int64"),
        (dict(cost=torch.tensor([[1.0, float("nan")]])), "finite"),
        (dict(cost=torch.tensor([[[1.0, 2.0]], [[float("-inf"), 1.0]]])), r"1 of 4 entries.*first at \[1\]"),
        (dict(cost=torch.rand(2, 3), reg=0.0), "reg"),
        (dict(cost=torch.rand(2, 3), reg=float("nan")), "reg"),
        (dict(cost=torch.rand(2, 3), max_iter=0), "max_iter"),
        (dict(cost=torch.rand(2, 3), tol=float("nan")), "tol"),
        (dict(cost=torch.rand(2, 3), unbalanced=-1.0), "unbalanced"),
        (dict(cost=torch.rand(2, 3), unbalanced=[1.0, None, 1.0]), "unbalanced"),
        (dict(cost=torch.rand(2, 3), a=torch.rand(3)), "weights a"),
        (dict(cost=torch.rand(2, 3), b=torch.tensor([1.0, -1.0, 1.0])), "weights b"),
        (dict(cost=torch.rand(2, 3), b=torch.tensor([1.0, float("nan"), 1.0])), "weights b"),
        (dict(cost=torch.rand(2, 3), a=torch.zeros(2)), "weights a"),
    ],
)
def test_bad_input(dtype, arguments, words):
    arguments = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=words):
        sinkhorn(**{"reg": 0.1, **arguments})


def test_a_warning_where_numba_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "otclib.transport.cpu", None)
    monkeypatch.delattr("otclib.transport.cpu", raising=False)
    transport.compiled.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without Numba"):
            assert sinkhorn(torch.rand(2, 4, 3), reg=0.1).converged.all()
    finally:
        transport.compiled.cache_clear()


def test_the_gradient_of_the_cost_is_the_plan_and_no_derivative():
    """``cost`` holds P constant: its gradient is P. That of <P(C), C> has a further term."""
    C, a, b = problem(2, 3, 4, 6)

    def solved(C):
        return sinkhorn(C, a, b, reg=0.2, tol=1e-13, max_iter=20_000)

    def differences(of, step=1e-5):
        out = torch.zeros_like(C)
        for at in np.ndindex(*C.shape):
            shift = torch.zeros_like(C)
            shift[at] = step
            out[at] = (of(solved(C + shift)) - of(solved(C - shift)))[at[0]] / (2 * step)
        return out

    plan = solved(C).plan
    for name in ("cost", "value"):
        x = C.clone().requires_grad_()
        getattr(solved(x), name).sum().backward()
        assert torch.allclose(x.grad, plan, atol=1e-12)
    assert torch.allclose(differences(lambda s: s.value), plan, atol=1e-6)
    assert (differences(lambda s: s.cost) - plan).abs().max() > 1e-2
