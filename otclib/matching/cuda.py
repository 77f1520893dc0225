"""The transport costs of many (image, caption) pairs in one Triton kernel, without a cost matrix in memory.

One program takes one pair. Its tile holds first the cosines of all tokens, then K, and the whole solution runs on it:

    C_nm = 1 - <v_n, t_m>,   K = exp(-C / eps),   u <- a / K v,   v <- b / K^T u,   P = diag(u) K diag(v)

with uniform weights a = 1/n, b = 1/m (Cuturi, NeurIPS 2013). Cosine costs span at most 2, so K is safe in float32 for
2 / eps <= 60. For smaller eps the same iteration runs on log u and log v by log-sum-exp. At the end the plan is made
feasible (Altschuler, Weed and Rigollet, NeurIPS 2017, Algorithm 2): rows, then columns, that are too heavy are scaled
down by x and y,

    P' = diag(x) P diag(y) + e_a e_b^T / |e_a|_1,    e_a, e_b = what the scaled plan lacks of a and of b,

so <P', C> is never below the exact cost, however early the iteration was stopped.

The side with more tokens lies along the tile's rows and is scaled first: an mma tile sums along short rows with the
fewest shuffles. With TRITON_INTERPRET=1 set at the call, the kernel runs on any device in Triton's slow interpreter.
"""

import os
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from otclib.transport import SAFE_RANGE

try:
    import triton
    import triton.language as tl

    # What tl.sum and tl.max give to tl.reduce. Those two can be interpreted only if TRITON_INTERPRET was set before
    # anyone, PyTorch included, imported Triton; tl.reduce always can.
    _add, _max = tl.standard._sum_combine, tl.standard._elementwise_max
except ImportError:  # then `available` is False
    triton, tl = None, SimpleNamespace(constexpr=None)

MAX_TILE = 2**15  # entries: 64 registers in each of 512 threads
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass
class PairCosts:
    """One entry per pair."""

    cost: Tensor  # [K] float32, <P', C> of the feasible plan
    marginal_error: Tensor  # [K] float32, |P 1 - a|_1 + |P^T 1 - b|_1 of the plan before it was made feasible
    n_iter: Tensor  # [K] int32
    f: Tensor | None = None  # [K, N] float32, -inf at padding: P = exp((f_n + g_m - C_nm) / eps)
    g: Tensor | None = None  # [K, M]


def available(tensor: Tensor) -> bool:
    """Return whether the kernel can run on the tensor's device: CUDA, with Triton installed."""
    return tensor.is_cuda and triton is not None


def pair_costs(
    image_tokens: Tensor,
    image_length: Tensor,
    text_tokens: Tensor,
    text_length: Tensor,
    rows: Tensor,
    cols: Tensor,
    *,
    reg: float,
    tol: float = 1e-4,
    max_iter: int = 1000,
    potentials: bool = False,
) -> PairCosts:
    """Return the transport cost of image ``rows[k]`` with caption ``cols[k]``, for every k. No gradient is recorded.

    Parameters
    ----------
    image_tokens, text_tokens : [B, N, D], [P, M, D], both float16, bfloat16 or float32, of unit L2 norm.
    image_length, text_length : [B], [P] int32 or int64: the number of real tokens; later tokens are never read.
    rows, cols : [K] int64.
    reg : eps > 0, in the units of the cost.
    tol : stop a pair once the L1 error of its first marginal is at most 0.99 of this; the second marginal is exact. The
        error comes from the next product K v at no cost, so the plan has one iteration more than it needed.
    potentials : also return f and g.

    Raises
    ------
    ValueError : wrong shapes, dtypes or devices, a length or index out of range, reg <= 0, max_iter < 1, more tokens
        than a tile holds, no Triton, tensors that are not on CUDA outside Triton's interpreter.
    """
    if triton is None:
        raise ValueError("pair_costs needs Triton, which cannot be imported here")
    kernel = _kernel(os.environ.get("TRITON_INTERPRET", "0"))
    interpreted = not isinstance(kernel, triton.JITFunction)
    if not (image_tokens.is_cuda or interpreted):
        raise ValueError(f"pair_costs needs CUDA tensors (or TRITON_INTERPRET=1), got {image_tokens.device}")
    _check(image_tokens, image_length, text_tokens, text_length, rows, cols, reg, max_iter)
    if interpreted and image_tokens.dtype == torch.bfloat16:  # the interpreter has no bfloat16 product
        image_tokens, text_tokens = image_tokens.float(), text_tokens.float()

    (N, D), M, K = image_tokens.shape[1:], text_tokens.shape[1], len(rows)
    f, g = (image_tokens.new_empty(K, s, dtype=torch.float32) if potentials else None for s in (N, M))
    sides = [(image_tokens, image_length, rows, N, f), (text_tokens, text_length, cols, M, g)]
    (x, *of_x, tall, fx), (y, *of_y, wide, fy) = reversed(sides) if M > N else sides
    block_n, block_m = (max(16, triton.next_power_of_2(s)) for s in (tall, wide))  # tl.dot wants at least 16
    if block_n * block_m > MAX_TILE:
        raise ValueError(f"{N} x {M} tokens need a tile of {block_n * block_m} entries, more than {MAX_TILE}")
    cost, marginal_error = image_tokens.new_empty(2, K, dtype=torch.float32)
    n_iter = torch.empty_like(cost, dtype=torch.int32)
    with torch.cuda.device_of(image_tokens):
        if K:
            kernel[(K,)](
                *(t.contiguous() for t in (x, *of_x, y, *of_y)), cost, marginal_error, n_iter, fx, fy,
                float(reg), 0.99 * tol, max_iter, tall, wide, D, LOG=2 / reg > SAFE_RANGE,
                BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_D=32 if x.dtype == torch.float32 else 64,
                num_warps=min(16, max(1, block_n * block_m // 2048)), num_stages=2,
            )  # fmt: skip
    return PairCosts(cost, marginal_error, n_iter, f, g)


@cache
def _kernel(interpret: str):
    return triton.jit(_pair_kernel)  # compiled or interpreted, as the environment says at this moment


def _check(image_tokens, image_length, text_tokens, text_length, rows, cols, reg, max_iter) -> None:
    tensors = (image_tokens, image_length, text_tokens, text_length, rows, cols)
    x, x_length, y, y_length, r, c = shapes = [tuple(t.shape) for t in tensors]
    if len(x) != 3 or len(y) != 3 or 0 in x + y or x[2] != y[2] or x_length != x[:1] or y_length != y[:1]:
        raise ValueError(f"tokens and lengths must be [B, N, D], [B], [P, M, D], [P], none empty, got {shapes[:4]}")
    dtypes = [t.dtype for t in tensors]
    if dtypes[0] not in DTYPES or dtypes[0] != dtypes[2]:
        raise ValueError(f"tokens must both be float16, bfloat16 or float32, got {dtypes[0]} and {dtypes[2]}")
    if {dtypes[1], dtypes[3]} - {torch.int32, torch.int64}:
        raise ValueError(f"lengths must be int32 or int64, got {dtypes[1]} and {dtypes[3]}")
    if len(r) != 1 or r != c or {*dtypes[4:]} != {torch.int64}:
        raise ValueError(f"rows and cols must be [K] int64, got {r} {dtypes[4]} and {c} {dtypes[5]}")
    if len({t.device for t in tensors}) > 1:
        raise ValueError(f"all tensors must be on one device, got {[str(t.device) for t in tensors]}")
    if not reg > 0 or max_iter < 1:
        raise ValueError(f"reg must be positive and max_iter at least 1, got {reg} and {max_iter}")
    limits = [("image_length", image_length, 1, x[1]), ("text_length", text_length, 1, y[1])]
    limits += [("rows", rows, 0, x[0] - 1), ("cols", cols, 0, y[0] - 1)] if len(rows) else []
    spans = torch.stack([torch.stack(t.aminmax()).long() for _, t, _, _ in limits]).tolist()  # one look at the device
    for (name, _, low, high), (least, most) in zip(limits, spans):
        if least < low or most > high:
            raise ValueError(f"{name} must lie in {low} ... {high}, got {least} ... {most}")


def _pair_kernel(
    X, X_length, rows, Y, Y_length, cols, cost, marginal_error, n_iter, F, G, reg, stop, max_iter, N, M, D,
    LOG: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Solve one pair. Padding weighs nothing: the tile is finite there, and u or v is 0."""
    k = tl.program_id(0).to(tl.int64)
    i = tl.load(rows + k)
    j = tl.load(cols + k)
    n = tl.load(X_length + i)
    m = tl.load(Y_length + j)
    at_n = tl.arange(0, BLOCK_N)
    at_m = tl.arange(0, BLOCK_M)
    S = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)  # cosines
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(X + (i * N + at_n[:, None]) * D + d[None], (at_n[:, None] < n) & (d[None] < D), 0.0)
        y = tl.load(Y + (j * M + at_m[None]) * D + d[:, None], (at_m[None] < m) & (d[:, None] < D), 0.0)
        S = tl.dot(x, y, S, input_precision="ieee")
    best = tl.reduce(tl.reduce(S, 1, _max), 0, _max)
    L = (S - best) / reg  # -(C - min C) / eps

    a = tl.where(at_n < n, 1.0 / n.to(tl.float32), 0.0)
    b = tl.where(at_m < m, 1.0 / m.to(tl.float32), 0.0)
    t = 0
    error = 2.0
    if LOG:
        f = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        g = tl.where(at_m < m, 0.0, float("-inf"))
        while (t < max_iter) & (error > stop):
            Z = L + g[None]
            top = tl.reduce(Z, 1, _max)
            total = top + tl.log(tl.reduce(tl.exp(Z - top[:, None]), 1, _add))
            error = tl.reduce(tl.abs(tl.exp(f + total) - a), 0, _add)
            f = tl.log(a) - total
            Z = L + f[:, None]
            top = tl.reduce(Z, 0, _max)
            g = tl.log(b) - top - tl.log(tl.reduce(tl.exp(Z - top[None]), 0, _add))
            t += 1
        P = tl.exp(L + f[:, None] + g[None])
    else:
        K = tl.exp(L)
        u = tl.full((BLOCK_N,), 0.0, tl.float32)
        v = tl.where(at_m < m, 1.0, 0.0)
        while (t < max_iter) & (error > stop):
            Kv = tl.reduce(K * v[None], 1, _add)
            error = tl.reduce(tl.abs(u * Kv - a), 0, _add)
            u = a / Kv
            v = b / tl.reduce(K * u[:, None], 0, _add)
            t += 1
        P = u[:, None] * K * v[None]
        L = tl.log(K)  # anew, so that no second tile sits in registers during the loop
        f = tl.log(u)
        g = tl.log(v)

    r = tl.reduce(P, 1, _add)
    c = tl.reduce(P, 0, _add)
    tl.store(marginal_error + k, tl.reduce(tl.abs(r - a), 0, _add) + tl.reduce(tl.abs(c - b), 0, _add))
    tl.store(n_iter + k, t)
    P *= tl.minimum(a / (r + 1e-30), 1.0)[:, None]
    c = tl.reduce(P, 0, _add)
    P *= tl.minimum(b / (c + 1e-30), 1.0)[None]
    lack_a = tl.maximum(a - tl.reduce(P, 1, _add), 0.0)
    lack_b = tl.maximum(b - c, 0.0)
    P += lack_a[:, None] * (lack_b / (tl.reduce(lack_a, 0, _add) + 1e-30))[None]
    tl.store(cost + k, tl.reduce(tl.reduce(P * (1 - best - reg * L), 1, _add), 0, _add))
    if F is not None:
        tl.store(F + k * N + at_n, reg * f + (1 - best), at_n < N)
        tl.store(G + k * M + at_m, reg * g, at_m < M)
