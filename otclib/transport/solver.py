"""Entropic optimal transport for many small problems at once.

For a cost matrix C, marginals a, b and a regularisation ``reg`` = eps, the plan is

    P = argmin_P  <P, C> - eps H(P)   with  P 1 = a,  P^T 1 = b,      P_nm = exp((f_n + g_m - C_nm) / eps)

with H(P) = -sum P (log P - 1) (Cuturi, NeurIPS 2013). Sinkhorn's iterations scale rows and columns of
K = exp(-C / eps) in turn. With ``unbalanced`` = rho the marginals are penalised instead, by rho KL(P 1 | a) and
rho KL(P^T 1 | b) (Chizat et al., Math. Comp. 2018), so mass that is far from everything is not moved.

On the CPU, float32 problems are solved one by one in the first-level cache (``transport/cpu.py``). This file serves
every device and dtype. It keeps a batch's problems on the *last* axis, so that sums run along memory.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**18  # entries of a cost chunk: 1 MiB of float32, about a core's second-level cache
SAFE_RANGE = 60.0  # largest (max C - min C) / eps for which exp(-C / eps) is far from float32's smallest number
CHECK = 5  # iterations between two looks at the error

Rho = tuple[float | None, float | None]  # of a and of b; None: the marginal is met
Solved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # f, g, cost, marginal error, iterations


@dataclass
class Transport:
    """The solution, one entry per problem. The batch axes are those of the cost matrix."""

    cost: Tensor  # [B]  <P, C>; its gradient in C is P, as P is held constant (a stop-gradient)
    potentials: tuple[Tensor, Tensor]  # f [B, N], g [B, M], float64; -inf where the weight is zero
    marginal_error: Tensor  # [B]  |P 1 - a|_1 + |P^T 1 - b|_1; unbalanced: of a exp(-f / rho), b exp(-g / rho)
    converged: Tensor  # [B]  marginal_error <= tol
    n_iter: Tensor  # [B]
    reg: float
    unbalanced: Rho
    _C: Tensor = field(repr=False)
    _weights: tuple[Tensor, Tensor] = field(repr=False)
    _version: int = field(repr=False)

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return a [B, N] and b [B, M] as they were solved, with sum 1."""
        a, b = self._weights
        return _scaled(a), _scaled(b)

    @cached_property
    def plan(self) -> Tensor:
        """Return P [B, N, M]; it is computed from the potentials and the cost matrix at the first use."""
        if self._version != _version(self._C):
            raise RuntimeError("the cost matrix was changed in place after it was solved: ask for the plan before")
        return _plan(self._C.detach(), *self.potentials, self.reg)

    @property
    def value(self) -> Tensor:
        """Return the optimum [B], <P, C> - eps H(P) + rho KL(...), in float64; its derivative in C is P.

        The envelope theorem says so: P minimises the objective, so to first order its dependence on C does not count.
        """
        total = -self.reg * self.plan.double().sum((-2, -1))
        for w, h, rho in zip(self.weights, self.potentials, self.unbalanced):
            h = h.masked_fill(w == 0, 0.0)
            total = total + (w.double() * (h if rho is None else rho * (1 - torch.exp(-h / rho)))).sum(-1)
        return _GradientIsPlan.apply(self._C, total, *self.potentials, self.reg)


class _GradientIsPlan(torch.autograd.Function):
    """A number whose gradient in C is declared to be P. No plan is stored: P is computed from the potentials.

    Of the optimum (``Transport.value``) this is the derivative, by the envelope theorem. Of <P, C> (``Transport.cost``)
    it is a surrogate that holds P constant: the derivative of <P(C), C> also has the term <dP, C>.
    """

    @staticmethod
    def forward(ctx: Any, C: Tensor, number: Tensor, f: Tensor, g: Tensor, reg: float) -> Tensor:
        ctx.save_for_backward(C, f, g)
        ctx.reg = reg
        return number.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        C, f, g = ctx.saved_tensors
        return _plan(C, f, g, ctx.reg, grad).to(C.dtype), None, None, None, None


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    reg: float,
    tol: float = 1e-4,
    max_iter: int = 1000,
    unbalanced: float | Rho | None = None,
) -> Transport:
    """Solve a batch of entropic transport problems; each stops when it has converged.

    Parameters
    ----------
    cost : [N, M], [B, N, M] or [A, B, N, M], any strides, any float dtype; solved in float32 (float64 stays float64).
    a, b : [N], [M] or anything that broadcasts to [..., N], [..., M]: non-negative weights, scaled to sum 1; default
        uniform. A zero weight is padding, whose costs are ignored.
    reg : eps > 0, in the units of the cost.
    tol : stop a problem when the L1 error of both marginals together is at most this.
    unbalanced : rho > 0 of both marginals, or a pair (of a, of b) in which None means a marginal that is met.

    Returns
    -------
    Transport. The gradient of ``cost`` in C is the plan, held constant; nothing is recorded under ``no_grad``.
    A problem that misses ``tol`` after ``max_iter`` iterations has ``converged`` False, and its ``marginal_error``.

    Raises
    ------
    ValueError : wrong shapes, a cost that is not finite where the weights are not zero, negative or all-zero weights,
        reg or rho <= 0, max_iter < 1.

    Examples
    --------
    >>> solved = sinkhorn(torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]), reg=0.2)  # three places, two words
    >>> print(solved.plan.numpy().round(2), f"cost {float(solved.cost):.2f}")
    [[0.33 0.01]
     [0.01 0.33]
     [0.17 0.17]] cost 0.24
    """
    if not 2 <= cost.ndim <= 4 or 0 in cost.shape[-2:] or not cost.is_floating_point():
        raise ValueError(
            f"cost must be a float tensor [N, M], [B, N, M] or [A, B, N, M] with N, M >= 1, "
            f"got {cost.dtype} of shape {tuple(cost.shape)}"
        )
    if not 0 < reg < float("inf"):
        raise ValueError(f"reg must be positive and finite, got {reg}")
    if max_iter < 1 or not tol >= 0:
        raise ValueError(f"max_iter must be at least 1 and tol not negative, got {max_iter} and {tol}")
    pair = tuple(unbalanced) if isinstance(unbalanced, (tuple, list)) else (unbalanced, unbalanced)
    if len(pair) != 2 or any(r is not None and not r > 0 for r in pair):
        raise ValueError(f"unbalanced must be positive, or a pair of positive numbers or None, got {unbalanced}")
    rho_a, rho_b = (None if r is None or r == float("inf") else float(r) for r in pair)
    rho, reg = (rho_a, rho_b), float(reg)
    dtype = torch.float64 if cost.dtype == torch.float64 else torch.float32
    batch, (N, M) = cost.shape[:-2], cost.shape[-2:]
    with torch.no_grad(), torch.autocast(cost.device.type, enabled=False):
        C = cost.detach().to(dtype)
        a, b = _weights(a, (*batch, N), "a", C), _weights(b, (*batch, M), "b", C)
        if C.device.type == "cpu" and dtype == torch.float32 and rho == (None, None) and (kernel := compiled()):
            lead = (None,) * (4 - C.ndim)
            out = kernel.solve(C[lead], a[lead], b[lead], reg, tol, max_iter)
        else:
            out = _solve_all(C.reshape(-1, N, M), a.reshape(-1, N), b.reshape(-1, M), reg, tol, max_iter, rho)
        f, g, number, error, n_iter = (x.reshape(batch + x.shape[1:]) for x in out)
        _refuse_bad_input(n_iter, C, a, b)
    value = _GradientIsPlan.apply(cost, number, f, g, reg) if cost.requires_grad and torch.is_grad_enabled() else number
    return Transport(value, (f, g), error, error <= tol, n_iter.long(), reg, rho, cost, (a, b), _version(cost))


def _scaled(w: Tensor) -> Tensor:
    return (w.double() / w.sum(-1, keepdim=True, dtype=torch.float64)).to(w.dtype)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _weights(w: Tensor | None, shape: tuple[int, ...], name: str, like: Tensor) -> Tensor:
    if w is None:
        return like.new_ones(()).expand(shape)
    w = torch.as_tensor(w, device=like.device).detach().to(like.dtype)
    try:
        return w.expand(shape)
    except RuntimeError:
        raise ValueError(f"weights {name} must broadcast to the shape {shape}, got {tuple(w.shape)}") from None


def _refuse_bad_input(n_iter: Tensor, C: Tensor, a: Tensor, b: Tensor) -> None:
    """Raise ValueError if a solver marked a problem in ``n_iter``: -1 for wrong a, -2 for wrong b, -3 for wrong C."""
    worst = int(n_iter.min()) if n_iter.numel() else 0
    if worst >= 0:
        return
    where = (n_iter < 0).nonzero()[0].tolist()
    count = f"in {int((n_iter < 0).sum())} of {n_iter.numel()} problems, the first at {where}"
    if (n_iter == -1).any() or (n_iter == -2).any():
        name, w = ("a", a) if (n_iter == -1).any() else ("b", b)
        at = tuple((n_iter == (-1 if name == "a" else -2)).nonzero()[0])
        raise ValueError(
            f"weights {name} must be finite, non-negative and not all zero in any problem, "
            f"got {w[at].tolist()} ({count})"
        )
    raise ValueError(f"cost must be finite, {int((~torch.isfinite(C)).sum())} of {C.numel()} entries are not ({count})")


@cache
def compiled() -> Any | None:
    """Return the module of the compiled CPU kernels, or None where Numba is missing."""
    try:
        from otclib.transport import cpu
    except ImportError as error:
        warnings.warn(f"without Numba transport on the CPU takes ten times as long ({error})", stacklevel=3)
        return None
    return cpu


def _plan(C: Tensor, f: Tensor, g: Tensor, reg: float, factor: Tensor | None = None) -> Tensor:
    """Return factor * exp((f + g - C) / eps), with the exponent in float64."""
    shape, C = C.shape, C.detach()
    with torch.no_grad(), torch.autocast(C.device.type, enabled=False):
        if C.device.type == "cpu" and C.dtype != torch.float64 and (kernel := compiled()):
            factor = torch.ones(shape[:-2]) if factor is None else factor.float()
            C = C.float()[(None,) * (4 - C.ndim)]
            flat = (x.reshape(-1, x.shape[-1]).contiguous() for x in (f, g))
            return kernel.plans(C, *flat, factor.reshape(-1), reg).reshape(shape)
        P = torch.exp((f[..., :, None] + g[..., None, :] - C.double()) / reg)
        P = P.masked_fill((f == -torch.inf)[..., :, None] | (g == -torch.inf)[..., None, :], 0.0)
        if factor is not None:
            P = P * factor[..., None, None]
        return P.to(torch.float64 if C.dtype == torch.float64 else torch.float32)


def _solve_all(C: Tensor, a: Tensor, b: Tensor, reg: float, tol: float, max_iter: int, rho: Rho) -> Solved:
    """Solve C [B, N, M], a [B, N], b [B, M] on any device and in any dtype, in chunks."""
    wrong = torch.zeros(len(C), dtype=torch.long, device=C.device)
    used = (a[:, :, None] > 0) & (b[:, None] > 0)
    wrong[~torch.isfinite(C.masked_fill(~used, 0.0)).all((1, 2))] = -3
    for code, w in ((-2, b), (-1, a)):
        wrong[~(torch.isfinite(w).all(1) & (w >= 0).all(1) & (w > 0).any(1))] = code
    if (wrong < 0).any():
        nothing = C.new_zeros(len(C))
        return a.double(), b.double(), nothing, nothing, wrong
    C = C.masked_fill(~used, 0.0)
    a, b = _scaled(a), _scaled(b)
    size = max(1, CHUNK // (C.shape[1] * C.shape[2])) if C.device.type == "cpu" else max(len(C), 1)
    parts = [
        _solve(C[k : k + size], a[k : k + size], b[k : k + size], reg, tol, max_iter, rho)
        for k in range(0, max(len(C), 1), size)
    ]
    f, g, cost, error, n_iter = (torch.cat(part) for part in zip(*parts))
    return f, g, cost, error, n_iter


def _solve(C: Tensor, a: Tensor, b: Tensor, reg: float, tol: float, max_iter: int, rho: Rho) -> Solved:
    """Solve one chunk; a problem that has converged leaves the iteration."""
    C, a, b = (x.movedim(0, -1).contiguous() for x in (C, a, b))  # (N, M, B), (N, B), (M, B)
    balanced = rho == (None, None)
    used = (a[:, None] > 0) & (b[None] > 0)
    low = torch.where(used, C, torch.inf).amin((0, 1))
    high = torch.where(used, C, -torch.inf).amax((0, 1))
    moderate = balanced and (len(low) == 0 or float((high - low).max()) / reg < SAFE_RANGE)
    step = _kernel_steps if moderate else _log_steps
    low = low if balanced else torch.zeros_like(low)
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    n_iter = torch.zeros(C.shape[-1], dtype=torch.long, device=C.device)
    live = torch.arange(C.shape[-1], device=C.device)  # the problems in the iteration ...
    open_ = torch.ones_like(live, dtype=torch.bool)  # ... and which of these have not converged yet
    done, state = 0, step.start(C - low, a, b, reg, rho)
    while done < max_iter and bool(open_.any()):
        n = min(CHECK, max_iter - done)
        row_error = step.advance(state, n)
        done += n
        f_now, g_now = step.potentials(state)
        now = live[open_]  # a converged problem keeps its potentials of that moment, whatever else is in its batch
        f[:, now], g[:, now], n_iter[now] = f_now[:, open_], g_now[:, open_], done
        open_ = open_ & ~(row_error <= tol)
        if int(open_.sum()) < 0.7 * len(live):
            state, live, open_ = step.keep(state, open_), live[open_], open_[open_]
    f, g = (f + low).double(), g.double()  # the kernel was built from C - low
    P = torch.exp((f[:, None] + g[None] - C) / reg)
    P = torch.where(used, P, 0.0)
    cost = (P * C).sum((0, 1))
    error = torch.zeros_like(cost)
    for w, h, sums, r in ((a, f, P.sum(1), rho[0]), (b, g, P.sum(0), rho[1])):
        wanted = w if r is None else torch.where(w > 0, w * torch.exp(-h / r), 0.0)
        error = error + (sums - wanted).abs().sum(0)
    return f.movedim(-1, 0), g.movedim(-1, 0), cost.to(C.dtype), error.to(C.dtype), n_iter


class _kernel_steps:
    """Iterations u = a / K v, v = b / K^T u on K = exp(-C / eps): fast, for moderate C / eps and met marginals."""

    @staticmethod
    def start(C: Tensor, a: Tensor, b: Tensor, reg: float, rho: Rho) -> dict[str, Any]:
        K = torch.exp(C / -reg)
        return {"K": K, "a": a, "b": b, "v": (b > 0).to(C.dtype), "u": None, "reg": reg, "tmp": torch.empty_like(K)}

    @staticmethod
    def advance(s: dict[str, Any], n: int) -> Tensor:
        K, a, b, tmp = s["K"], s["a"], s["b"], s["tmp"]
        u, v = s["u"], s["v"]
        for _ in range(n):
            u = a / torch.mul(K, v[None], out=tmp).sum(1)
            v = b / torch.mul(K, u[:, None], out=tmp).sum(0)
        s["u"], s["v"] = u, v
        return (u * torch.mul(K, v[None], out=tmp).sum(1) - a).abs().sum(0)

    @staticmethod
    def potentials(s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return s["reg"] * s["u"].log(), s["reg"] * s["v"].log()

    @staticmethod
    def keep(s: dict[str, Any], stay: Tensor) -> dict[str, Any]:
        kept = {k: s[k][..., stay] for k in ("K", "a", "b", "u", "v")}
        return {**s, **kept, "tmp": torch.empty_like(kept["K"])}


class _log_steps:
    """The same iterations on potentials over eps, by log-sum-exp: slower, for any eps and unbalanced marginals."""

    @staticmethod
    def start(C: Tensor, a: Tensor, b: Tensor, reg: float, rho: Rho) -> dict[str, Any]:
        g = torch.where(b > 0, 0.0, -torch.inf).to(C.dtype)
        give = [1.0 if r is None else r / (r + reg) for r in rho]
        return {"K": C / -reg, "a": a, "b": b, "u": None, "v": g, "reg": reg, "give": give, "rho": rho}

    @staticmethod
    def advance(s: dict[str, Any], n: int) -> Tensor:
        L, log_a, log_b = s["K"], s["a"].log(), s["b"].log()
        u, v = s["u"], s["v"]
        for _ in range(n):
            u = s["give"][0] * (log_a - torch.logsumexp(L + v[None], 1))
            v = s["give"][1] * (log_b - torch.logsumexp(L + u[:, None], 0))
        s["u"], s["v"] = u, v
        log_wanted = log_a if s["rho"][0] is None else log_a - torch.where(s["a"] > 0, u, 0.0) * s["reg"] / s["rho"][0]
        return ((u + torch.logsumexp(L + v[None], 1)).exp() - log_wanted.exp()).abs().sum(0)

    @staticmethod
    def potentials(s: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return s["reg"] * s["u"], s["reg"] * s["v"]

    @staticmethod
    def keep(s: dict[str, Any], stay: Tensor) -> dict[str, Any]:
        return {**s, **{k: s[k][..., stay] for k in ("K", "a", "b", "u", "v")}}


def exact(cost: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the unregularised plan [N, M] and its cost, of one problem, by POT's network simplex."""
    import ot

    C = cost.detach().double().cpu().numpy()
    weights = [np.full(n, 1 / n) if w is None else w.detach().double().cpu().numpy() for w, n in zip((a, b), C.shape)]
    plan = ot.emd(*[w / w.sum() for w in weights], C)
    return torch.from_numpy(plan).to(cost), torch.tensor((plan * C).sum()).to(cost)
