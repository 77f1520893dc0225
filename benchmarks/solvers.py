"""Ways to solve a batch of entropic transport problems, ours and what else a user could pick, behind one signature.

A solver takes C [B, N, M], weights a [B, N], b [B, M], reg and an ``effort``, the number of iterations, and returns the
plans [B, N, M]. Each is given the least effort that brings 64 problems to ``TOL``, found before anything is timed;
ours stops itself there, every problem at its own time. What is timed ends with the transport costs <P, C> [B].
"""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import ot
import torch
from ot.batch import solve_batch
from torch import Tensor

from otclib.transport import sinkhorn

TOL = 1e-4  # L1 error of both marginals together, of the worst problem of a batch


def ours(C, a, b, reg):
    """Transport costs [B]."""
    return sinkhorn(C, a, b, reg=reg, tol=TOL, max_iter=5000).cost


def pot_log(C, a, b, reg, effort):
    return solve_batch(C, reg, a, b, max_iter=effort, tol=0.0, method="log_sinkhorn", grad="detach").plan


def pot_kernel(C, a, b, reg, effort):
    return solve_batch(C, reg, a, b, max_iter=effort, tol=0.0, method="sinkhorn", grad="detach").plan


def torch_kernel(C, a, b, reg, effort):
    """The loop that everyone writes: two batched products an iteration."""
    K = torch.exp(C / -reg)
    v = torch.ones_like(b)[..., None]
    for _ in range(effort):
        u = a[..., None] / (K @ v)
        v = b[..., None] / (K.transpose(1, 2) @ u)
    return u * K * v.transpose(1, 2)


def pot_loop(C, a, b, reg, effort):
    how = {"reg": reg, "method": "sinkhorn", "numItermax": effort, "stopThr": 0.0, "warn": False}
    return torch.stack([torch.from_numpy(ot.sinkhorn(*_double(*x), **how)).float() for x in zip(a, b, C)])


def emd_loop(C, a, b, reg, effort):
    """The exact plan, by network simplex: another problem, shown because it is as fast as most."""
    return torch.stack([torch.from_numpy(ot.emd(*_double(*x))).float() for x in zip(a, b, C)])


def _double(*arrays: Tensor):
    a, b, C = (x.double().numpy() for x in arrays)
    return a / a.sum(), b / b.sum(), C


def geomloss(C, a, b, reg, effort):
    from geomloss import ot as gl

    return gl.solve_batch(C, reg=reg, a=a, b=b, max_iter=effort).plan


_jitted = {}


def ott(C, a, b, reg, effort):
    import jax
    from jax import numpy as jnp
    from ott.geometry.geometry import Geometry
    from ott.solvers.linear.sinkhorn import Sinkhorn

    if effort not in _jitted:
        from ott.problems.linear.linear_problem import LinearProblem

        solver = Sinkhorn(lse_mode=True, min_iterations=effort, max_iterations=effort, inner_iterations=effort)

        def solve(C, a, b, reg):
            return solver(LinearProblem(Geometry(cost_matrix=C, epsilon=reg), a, b)).matrix

        _jitted[effort] = jax.jit(jax.vmap(solve, (0, 0, 0, None)))
    plan = _jitted[effort](*(jnp.asarray(x.numpy()) for x in (C, a, b)), reg)
    return torch.from_numpy(np.array(plan))


OTHERS = {
    "POT ot.batch, log domain": pot_log,
    "POT ot.batch, kernel domain": pot_kernel,
    "torch loop, kernel domain": torch_kernel,
    "POT ot.sinkhorn, one by one": pot_loop,
    "POT ot.emd, one by one (exact)": emd_loop,
    "GeomLoss solve_batch": geomloss,
    "OTT-JAX, vmap": ott,
}
ONE_BY_ONE = {"POT ot.sinkhorn, one by one", "POT ot.emd, one by one (exact)"}
EXACT = "POT ot.emd, one by one (exact)"


def marginal_error(P: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (P.sum(2) - a).abs().sum(1) + (P.sum(1) - b).abs().sum(1)


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def least_effort(solver, C, a, b, reg, most: int = 1024) -> tuple[int | None, float]:
    """The fewest iterations, to a tenth, with which a solver brings these problems to ``TOL``, and their error then.

    None where it does not within ``most``, or where it returns what is no plan.
    """

    def error(effort: int) -> float:
        with quiet():
            worst = float(marginal_error(solver(C, a, b, reg, effort), a, b).max())
        return worst if worst == worst else float("inf")

    low, high = 0, 4
    while (reached := error(high)) > TOL:
        if high >= most:
            return None, reached
        low, high = high, 2 * high
    while high - low > max(1, high // 10):
        middle = (low + high) // 2
        worst = error(middle)
        low, high, reached = (low, middle, worst) if worst <= TOL else (middle, high, reached)
    return high, reached
