"""Entropic optimal transport for many small problems at once.

For a cost matrix C, marginals a, b and a regularisation ``reg`` = eps, the plan is

    P = argmin_P  <P, C> - eps H(P)   with  P 1 = a,  P^T 1 = b,      P_nm = exp((f_n + g_m - C_nm) / eps)

(Cuturi, NeurIPS 2013). Sinkhorn's iterations scale rows and columns of K = exp(-C / eps) in turn. A batch is kept with
its problems on the *last* axis: a sum over rows or columns then runs along memory, and a chunk of problems stays in
the cache for all of its iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**18  # entries of a cost chunk: 1 MiB of float32, about a core's second-level cache
SAFE_RANGE = 60.0  # largest (max C - min C) / eps for which exp(-C / eps) is far from float32's smallest number
CHECK = 5  # iterations between two looks at the error


@dataclass
class Transport:
    """The solution, one entry per problem; for a single problem the batch axis is absent."""

    plan: Tensor  # [B, N, M]
    cost: Tensor  # [B]  <P, C>, differentiable in C
    potentials: tuple[Tensor, Tensor]  # f [B, N], g [B, M]
    marginal_error: Tensor  # [B]  |P 1 - a|_1 + |P^T 1 - b|_1
    converged: Tensor  # [B]  marginal_error <= tol
    n_iter: Tensor  # [B]


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    reg: float,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> Transport:
    """Solve a batch of entropic transport problems.

    Parameters
    ----------
    cost : [N, M] or [B, N, M], any float dtype; solved in float32 (float64 stays float64).
    a, b : [N], [M] or [B, N], [B, M] non-negative weights, scaled to sum 1; default uniform. A zero weight is padding.
    reg : eps > 0, in the units of the cost.
    tol : stop a problem when the L1 error of both marginals together is at most this.

    Returns
    -------
    Transport. ``cost`` has the gradient P with respect to C (envelope theorem); nothing else is recorded.

    Raises
    ------
    ValueError : wrong shapes, a cost that is not finite, negative or all-zero weights, reg <= 0.
    """
    single = cost.ndim == 2
    C = cost[None] if single else cost
    if C.ndim != 3 or 0 in C.shape[1:]:
        raise ValueError(f"cost must be [N, M] or [B, N, M] with N, M >= 1, got shape {tuple(cost.shape)}")
    if not reg > 0:
        raise ValueError(f"reg must be positive, got {reg}")
    dtype = torch.float64 if C.dtype == torch.float64 else torch.float32
    B, N, M = C.shape
    with torch.no_grad(), torch.autocast(C.device.type, enabled=False):
        D = C.detach().to(dtype)
        if not torch.isfinite(D.sum()) and not torch.isfinite(D).all():
            raise ValueError(f"cost must be finite, {int((~torch.isfinite(D)).sum())} of {D.numel()} entries are not")
        a, b = _weights(a, (B, N), "a", D), _weights(b, (B, M), "b", D)
        chunk = max(1, CHUNK // (N * M)) if D.device.type == "cpu" else max(B, 1)
        parts = [
            _solve(D[k : k + chunk], a[k : k + chunk], b[k : k + chunk], reg, tol, max_iter) for k in range(0, B, chunk)
        ]
        if not parts:
            parts = [_solve(D, a, b, reg, tol, 0)]
        plan, f, g, error, n_iter = (torch.cat(p) for p in zip(*parts))
    value = (plan * C.to(dtype)).sum((1, 2))
    out = Transport(plan, value, (f, g), error, error <= tol, n_iter)
    if single:
        out = Transport(plan[0], value[0], (f[0], g[0]), error[0], out.converged[0], n_iter[0])
    return out


def _weights(w: Tensor | None, shape: tuple[int, int], name: str, like: Tensor) -> Tensor:
    if w is None:
        return torch.full(shape, 1.0 / shape[1], dtype=like.dtype, device=like.device)
    w = torch.as_tensor(w, device=like.device).detach().to(like.dtype)
    if w.shape not in (shape, shape[1:]):
        raise ValueError(f"weights {name} must have the shape {shape[1:]} or {shape}, got {tuple(w.shape)}")
    w = w.expand(shape)
    total = w.sum(1, keepdim=True)
    if not torch.isfinite(w).all() or (w < 0).any() or (total <= 0).any():
        raise ValueError(f"weights {name} must be finite, non-negative and not all zero in any problem")
    return w / total


def _solve(C: Tensor, a: Tensor, b: Tensor, reg: float, tol: float, max_iter: int):
    """One chunk, every problem to its own tolerance: problems that have converged leave the iteration."""
    C, a, b = (x.movedim(0, -1).contiguous() for x in (C, a, b))  # (N, M, B), (N, B), (M, B)
    low, high = C.amin((0, 1)), C.amax((0, 1))
    if bool(((high - low) / reg >= SAFE_RANGE).any()):  # then look closer: padding may hold any number
        used = (a[:, None] > 0) & (b[None] > 0)
        low = torch.where(used, C, torch.inf).amin((0, 1))
        high = torch.where(used, C, -torch.inf).amax((0, 1))
    moderate = len(low) == 0 or float((high - low).max()) / reg < SAFE_RANGE
    step = _kernel_steps if moderate else _log_steps
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    n_iter = torch.zeros(C.shape[-1], dtype=torch.long, device=C.device)
    live = torch.arange(C.shape[-1], device=C.device)  # the problems in the iteration ...
    open_ = torch.ones_like(live, dtype=torch.bool)  # ... and which of these have not converged yet
    done, state = 0, step.start(C - low, a, b, reg)
    while done < max_iter and bool(open_.any()):
        n = min(CHECK, max_iter - done)
        row_error = step.advance(state, n)
        done += n
        f_now, g_now = step.potentials(state)
        now = live[open_]  # a problem that has converged keeps the potentials of that moment, whoever shares its batch
        f[:, now], g[:, now], n_iter[now] = f_now[:, open_], g_now[:, open_], done
        open_ = open_ & ~(row_error <= tol)
        if int(open_.sum()) < 0.7 * len(live):
            state, live, open_ = step.keep(state, open_), live[open_], open_[open_]
    f = f + low  # the kernel was built from C - low
    P = torch.exp((f[:, None] + g[None] - C) / reg)
    P = torch.where((a[:, None] > 0) & (b[None] > 0), P, 0.0)
    error = (P.sum(1) - a).abs().sum(0) + (P.sum(0) - b).abs().sum(0)
    return P.movedim(-1, 0), f.movedim(-1, 0), g.movedim(-1, 0), error, n_iter


class _kernel_steps:
    """u = a / K v, v = b / K^T u on K = exp(-C / eps): fast, for moderate C / eps."""

    @staticmethod
    def start(C, a, b, reg):
        K = torch.exp(C / -reg)
        return {"K": K, "a": a, "b": b, "v": (b > 0).to(C.dtype), "u": None, "reg": reg, "tmp": torch.empty_like(K)}

    @staticmethod
    def advance(s, n):
        K, a, b, tmp = s["K"], s["a"], s["b"], s["tmp"]
        u, v = s["u"], s["v"]
        for _ in range(n):
            u = a / torch.mul(K, v[None], out=tmp).sum(1)
            v = b / torch.mul(K, u[:, None], out=tmp).sum(0)
        s["u"], s["v"] = u, v
        return (u * torch.mul(K, v[None], out=tmp).sum(1) - a).abs().sum(0)

    @staticmethod
    def potentials(s):
        return s["reg"] * s["u"].log(), s["reg"] * s["v"].log()

    @staticmethod
    def keep(s, stay):
        kept = {k: s[k][..., stay] for k in ("K", "a", "b", "u", "v")}
        return {**s, **kept, "tmp": torch.empty_like(kept["K"])}


class _log_steps:
    """The same on potentials, by log-sum-exp: slower, stable for any eps."""

    @staticmethod
    def start(C, a, b, reg):
        g = torch.where(b > 0, 0.0, -torch.inf).to(C.dtype)
        return {"K": C / -reg, "a": a, "b": b, "u": None, "v": g, "reg": reg}

    @staticmethod
    def advance(s, n):
        L, log_a, log_b = s["K"], s["a"].log(), s["b"].log()
        u, v = s["u"], s["v"]
        for _ in range(n):
            u = log_a - torch.logsumexp(L + v[None], 1)
            v = log_b - torch.logsumexp(L + u[:, None], 0)
        s["u"], s["v"] = u, v
        return ((u + torch.logsumexp(L + v[None], 1)).exp() - s["a"]).abs().sum(0)

    @staticmethod
    def potentials(s):
        return s["reg"] * s["u"], s["reg"] * s["v"]

    @staticmethod
    def keep(s, stay):
        return {**s, **{k: s[k][..., stay] for k in ("K", "a", "b", "u", "v")}}


def exact(cost: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The unregularised plan [N, M] and its cost, of one problem, by POT's network simplex: the oracle of our tests."""
    import ot

    C = cost.detach().double().cpu().numpy()
    weights = [np.full(n, 1 / n) if w is None else w.detach().double().cpu().numpy() for w, n in zip((a, b), C.shape)]
    plan = ot.emd(*[w / w.sum() for w in weights], C)
    return torch.from_numpy(plan).to(cost), torch.tensor((plan * C).sum()).to(cost)
