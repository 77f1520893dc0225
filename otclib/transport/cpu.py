"""Sinkhorn on the CPU, compiled by Numba: one problem at a time, always in the first-level cache.

A problem of 49 x 77 is 15 KB. It is copied once into a small block, without zero weights and with the cheaper axis
along the vector registers. K = exp((f + g - C) / eps) is built there, and one pass over K makes a whole iteration:

    for every row i:   u_i = a_i / <K_i, v>,   s += u_i K_i          then   |v * s - b|_1  is the error,   v = b / s

Where C / eps spans more than float32's exponent, the potentials f and g start from one iteration by log-sum-exp in
float64. They take over the logarithms of u and v whenever these grow large (Schmitzer, SIAM J. Sci. Comput. 2019), so
an iteration stays as cheap as in the kernel domain. If a number still overflows, the problem starts again, and every
iteration is by log-sum-exp. Each problem stops when it has converged.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import float32, float64, int32, int64, types

from otclib.transport.jit import kernel, parallel

LANES = 16  # float32 numbers in a vector register
ROW = 64  # what a row costs an iteration beside its entries, in entries
SAFE_RANGE = np.float32(60)  # largest (max C - min C) / eps for which exp(-C / eps) is far from float32's smallest
LARGE = np.float32(1e8)  # scalings beyond are taken over by the potentials
SLACK = 0.99  # stop a little below tol: the error is measured once more, with other rounding, at the end

f4, f8 = np.float32, np.float64


@kernel()
def _exp(x):
    """Return exp(x) for float32 x <= 0 or a little more, to 2e-7 relative; 0 below -87."""
    y = max(x, f4(-88.0)) * f4(1.4426950408889634)
    n = np.floor(y + f4(0.5))
    r = (y - n) * f4(0.6931471805599453)
    p = f4(1 / 720) * r + f4(1 / 120)
    p = p * r + f4(1 / 24)
    p = p * r + f4(1 / 6)
    p = p * r + f4(0.5)
    p = p * r + f4(1.0)
    p = p * r + f4(1.0)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(f4)
    return p * power if x > f4(-87.0) else f4(0.0)


@kernel()
def _log_iteration(X, a, b, n, m, reg, f, g):
    """Set f and g to their values after one exact row and column update, in float64."""
    P = X.shape[1]
    for i in range(n):
        top = -np.inf
        for j in range(m):
            top = max(top, g[j] - X[i, j])
        s = 0.0
        for j in range(m):
            s += np.exp((g[j] - X[i, j] - top) / reg)
        f[i] = reg * (np.log(f8(a[i])) - np.log(s)) - top
    top_, s_ = np.full(P, -np.inf), np.zeros(P)
    for i in range(n):
        for j in range(m):
            top_[j] = max(top_[j], f[i] - X[i, j])
    for i in range(n):
        for j in range(m):
            s_[j] += np.exp((f[i] - X[i, j] - top_[j]) / reg)
    for j in range(m):
        g[j] = reg * (np.log(f8(b[j])) - np.log(s_[j])) - top_[j]


@kernel()
def _kernel(X, f, g, n, m, reg, K):
    """Set K to exp((f + g - C) / eps), and to zero in the padding."""
    inv = 1 / reg
    for i in range(n):
        fi = f[i]
        for j in range(m):
            K[i, j] = _exp(f4((fi + g[j] - X[i, j]) * inv))
        for j in range(m, K.shape[1]):
            K[i, j] = 0


@kernel()
def _magnitude(x):
    return np.int32(f4(x).view(np.int32) & np.int32(0x7FFFFFFF))


@kernel()
def _lift(X, n, m, reg, low, high):
    """Shift a C of moderate span to begin at 0; return the shift and the span, infinite if an entry is not finite."""
    P = X.shape[1]
    largest = np.int32(0)  # of the magnitudes as integers, whose order is that of the numbers, and NaN above infinity
    for j in range(P):
        low[j], high[j] = X[0, j], X[0, j]
    for i in range(n):
        for j in range(P):
            x = X[i, j]
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]
            largest = max(largest, _magnitude(x))
    if largest >= np.int32(0x7F800000):
        return f4(0), f4(np.inf)
    least, most = low[0], high[0]
    for j in range(1, m):
        least, most = min(least, low[j]), max(most, high[j])
    if not (most - least) < SAFE_RANGE * reg:
        return f4(0), most - least  # not shifted: a shift would round entries that are small against the span
    for i in range(n):
        for j in range(P):
            X[i, j] -= least
    return least, most - least


@kernel()
def _iterate(X, span, a, b, n, m, reg, tol, max_iter, K, u, v, s, f, g):
    """Scale one problem and return the number of iterations; the plan is u_i K_ij v_j, with exact rows."""
    P = X.shape[1]
    moderate = span < SAFE_RANGE * reg
    for j in range(m):
        g[j] = 0
    if moderate:
        inv = f4(1 / reg)
        for i in range(n):
            f[i] = 0
            for j in range(P):
                K[i, j] = _exp(-X[i, j] * inv)
            for j in range(m, P):
                K[i, j] = 0
    else:
        _log_iteration(X, a, b, n, m, reg, f, g)
        _kernel(X, f, g, n, m, reg, K)
    for j in range(P):
        v[j] = f4(1) if j < m else f4(0)
    done = 0
    while True:
        for j in range(P):
            s[j] = f4(0) if j < m else f4(1)  # in the padding b / s is then 0
        top = f4(0)
        for i in range(n):
            d = f4(0)
            for j in range(P):
                d += K[i, j] * v[j]
            w = a[i] / d
            u[i] = w
            top = max(top, w)
            for j in range(P):
                s[j] += w * K[i, j]
        error = f4(0)
        for j in range(P):
            error += abs(v[j] * s[j] - b[j])
        done += 1
        if error <= tol or done >= max_iter:
            break
        for j in range(P):
            v[j] = b[j] / s[j]
        if moderate:
            healthy = error < LARGE
        else:
            large = top
            for j in range(P):
                large = max(large, v[j])
            healthy = error < LARGE and large < np.inf
            if healthy and large > LARGE:
                for i in range(n):
                    f[i] += reg * np.log(f8(u[i]))
                for j in range(m):
                    g[j] += reg * np.log(f8(v[j]))
                    v[j] = 1
                _kernel(X, f, g, n, m, reg, K)
        if not healthy:
            break
    if error <= tol or (done >= max_iter and error < LARGE):
        return done
    # something overflowed: start again, by log-sum-exp alone
    for j in range(m):
        g[j] = 0
    for j in range(P):
        v[j] = f4(1) if j < m else f4(0)
    while True:
        _log_iteration(X, a, b, n, m, reg, f, g)
        _kernel(X, f, g, n, m, reg, K)
        done += 1
        error = f4(0)
        for i in range(n):
            d = f4(0)
            for j in range(P):
                d += K[i, j]
            error += abs(d - a[i])
            u[i] = 1
        if error <= tol or done >= max_iter:
            return done


@kernel()
def _measure(X, a, b, n, m, K, u, v, s):
    """Return <P, C> and the L1 error of both marginals of the plan."""
    P = X.shape[1]
    for j in range(P):
        s[j] = 0
    cost, error = 0.0, 0.0
    for i in range(n):
        w, r, c = u[i], f4(0), f4(0)
        for j in range(P):
            p = w * K[i, j] * v[j]
            r += p
            c += p * X[i, j]
            s[j] += p
        cost += c
        error += abs(r - a[i])
    for j in range(P):
        error += abs(s[j] - b[j])
    return cost, error


@kernel()
def _used(w, index, out):
    """Write the places of positive weights and these scaled to sum 1; return their number, or -1 if w is invalid."""
    n, total = 0, 0.0
    for i in range(len(w)):
        if not (w[i] >= 0 and w[i] < np.inf):
            return -1
        if w[i] > 0:
            index[n] = i
            out[n] = w[i]
            total += w[i]
            n += 1
    if not (total > 0 and total < np.inf):
        return -1
    for i in range(n):
        out[i] = f4(out[i] / total)
    return n


@kernel()
def _padded(n):
    return (n + LANES - 1) // LANES * LANES


_view4, _view3 = types.Array(float32, 4, "A"), types.Array(float32, 3, "A")
_out2, _out1, _int1 = types.Array(float64, 2, "C"), types.Array(float32, 1, "C"), types.Array(int32, 1, "C")


@kernel(types.void(_view4, _view3, _view3, float64, float64, int64, _out2, _out2, _out1, _out1, _int1, int64, int64))
def _solve(C, a, b, reg, tol, max_iter, f_out, g_out, cost, error, n_iter, start, stop):
    """Solve problems start .. stop of C [B1, B2, N, M]; n_iter is -1, -2 or -3 where a, b or C is not valid."""
    inner, N, M = C.shape[1:]
    side, area = _padded(max(N, M)), max(N * _padded(M), M * _padded(N))
    block, kernel = np.empty(area, f4), np.empty(area, f4)
    rows, cols = np.empty(N, np.int64), np.empty(M, np.int64)
    wr, wc = np.zeros(side, f4), np.zeros(side, f4)
    u, v, s = np.empty(side, f4), np.empty(side, f4), np.empty(side, f4)
    f, g = np.empty(side), np.empty(side)
    tiny = f4(tol * SLACK)
    for k in range(start, stop):
        x, y = k // inner, k % inner
        n, m = _used(a[x, y], rows, wr), _used(b[x, y], cols, wc)
        if n < 0 or m < 0:
            n_iter[k] = -1 if n < 0 else -2
            continue
        turned = m * (_padded(n) + ROW) < n * (_padded(m) + ROW)
        if turned:
            X, K = block[: m * _padded(n)].reshape(m, -1), kernel[: m * _padded(n)].reshape(m, -1)
        else:
            X, K = block[: n * _padded(m)].reshape(n, -1), kernel[: n * _padded(m)].reshape(n, -1)
        plain = rows[n - 1] == n - 1 and cols[m - 1] == m - 1  # the padding, if any, is at the end
        for i in range(n):
            line = C[x, y, rows[i]]
            if turned:
                for j in range(m):
                    X[j, i] = line[cols[j]]
            elif plain:
                for j in range(m):
                    X[i, j] = line[j]
            else:
                for j in range(m):
                    X[i, j] = line[cols[j]]
        if turned:
            n, m = m, n
            p, q = wc, wr
        else:
            p, q = wr, wc
        for i in range(n):
            for j in range(m, X.shape[1]):
                X[i, j] = X[i, 0]
        low, span = _lift(X, n, m, reg, v, s)
        if not span < np.inf:
            n_iter[k] = -3
            continue
        for j in range(m, X.shape[1]):
            q[j] = 0
        n_iter[k] = _iterate(X, span, p, q, n, m, reg, tiny, max_iter, K, u, v, s, f, g)
        c, e = _measure(X, p, q, n, m, K, u, v, s)
        cost[k], error[k] = c + low, e
        for i in range(n):
            f[i] += reg * np.log(f8(u[i])) + low
        for j in range(m):
            g[j] += reg * np.log(f8(v[j]))
        f_out[k], g_out[k] = -np.inf, -np.inf
        if turned:
            for i in range(m):
                f_out[k, rows[i]] = g[i]
            for j in range(n):
                g_out[k, cols[j]] = f[j]
        else:
            for i in range(n):
                f_out[k, rows[i]] = f[i]
            for j in range(m):
                g_out[k, cols[j]] = g[j]


@kernel(types.void(_view4, _out2, _out2, _out1, float64, _view4, int64, int64))
def _plans(C, f, g, factor, reg, out, start, stop):
    inner, N, M = C.shape[1:]
    inv = 1 / reg
    x = np.empty(M, f4)
    for k in range(start, stop):
        for i in range(N):
            line, given = C[k // inner, k % inner, i], out[k // inner, k % inner, i]
            for j in range(M):
                x[j] = line[j]
            for j in range(M):
                x[j] = factor[k] * _exp(f4((f[k, i] + g[k, j] - x[j]) * inv))
            for j in range(M):
                given[j] = x[j]


def solve(C: torch.Tensor, a: torch.Tensor, b: torch.Tensor, reg: float, tol: float, max_iter: int):
    """Solve float32 C [B1, B2, N, M], a [B1, B2, N], b [B1, B2, M] of any strides: f, g, cost, error, n_iter, flat."""
    B = C.shape[0] * C.shape[1]
    f, g = np.empty((B, C.shape[2])), np.empty((B, C.shape[3]))
    cost, error, n_iter = np.empty(B, f4), np.empty(B, f4), np.empty(B, np.int32)
    parallel(_solve, B, C.numpy(), a.numpy(), b.numpy(), reg, tol, max_iter, f, g, cost, error, n_iter)
    return tuple(torch.from_numpy(x) for x in (f, g, cost, error, n_iter))


def plans(C: torch.Tensor, f: torch.Tensor, g: torch.Tensor, factor: torch.Tensor, reg: float) -> torch.Tensor:
    """Return factor exp((f + g - C) / eps), float32, in the shape and the strides of C [B1, B2, N, M]."""
    out = torch.empty_like(C)
    B = C.shape[0] * C.shape[1]
    parallel(_plans, B, C.numpy(), f.numpy(), g.numpy(), factor.contiguous().numpy(), reg, out.numpy())
    return out
