"""Matching on the CPU, compiled by Numba: token product, bounds and Sinkhorn of one image against its captions.

Only distances leave the cache. An image's tokens are transposed once, so that its patches lie along the vector
registers. A caption's cosines S [words, patches] are then a few rows in the first-level cache, and its bound and its
transport cost come from them. The result of a pair does not depend on the other pairs: the same pair gives the same
bits, and equal captions give equal distances.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import float32, float64, int32, int64, types

from otclib.transport.cpu import SLACK, _iterate, _lift, _padded, f4
from otclib.transport.jit import kernel, parallel

FEW = 32  # captions whose bounds are taken before the best of them are solved
HALVINGS = 6  # of the interval in which a word's threshold lies; each threshold gives a bound


@kernel()
def _product(t, m, vT, S):
    """Set S to t vT for words t [m, D], two words and eight dimensions at a time. S has one spare row."""
    D, P = vT.shape
    whole = D // 8 * 8
    for j in range(0, m, 2):
        x, y, sx, sy = t[j], t[min(j + 1, m - 1)], S[j], S[j + 1]  # an odd last word is done twice
        for i in range(P):
            sx[i] = 0
            sy[i] = 0
        for d in range(0, whole, 8):
            x0, x1, x2, x3, x4, x5, x6, x7 = x[d], x[d + 1], x[d + 2], x[d + 3], x[d + 4], x[d + 5], x[d + 6], x[d + 7]
            y0, y1, y2, y3, y4, y5, y6, y7 = y[d], y[d + 1], y[d + 2], y[d + 3], y[d + 4], y[d + 5], y[d + 6], y[d + 7]
            for i in range(P):
                v0, v1, v2, v3 = vT[d, i], vT[d + 1, i], vT[d + 2, i], vT[d + 3, i]
                v4, v5, v6, v7 = vT[d + 4, i], vT[d + 5, i], vT[d + 6, i], vT[d + 7, i]
                a = sx[i] + x0 * v0 + x1 * v1 + x2 * v2 + x3 * v3 + x4 * v4 + x5 * v5 + x6 * v6 + x7 * v7
                b = sy[i] + y0 * v0 + y1 * v1 + y2 * v2 + y3 * v3 + y4 * v4 + y5 * v5 + y6 * v6 + y7 * v7
                sx[i] = a
                sy[i] = b
        for d in range(whole, D):
            for i in range(P):
                a, b = sx[i] + x[d] * vT[d, i], sy[i] + y[d] * vT[d, i]
                sx[i] = a
                sy[i] = b


@kernel()
def _patches_relaxed(S, m, n, best):
    """Return a lower bound of the exact transport cost: each patch goes to the word that it is most like."""
    for i in range(n):
        best[i] = S[0, i]
    for j in range(1, m):
        for i in range(n):
            best[i] = max(best[i], S[j, i])
    total = f4(0)
    for i in range(n):
        total += best[i]
    return f4(1) - total / f4(n)


@kernel()
def _words_relaxed(S, m, n):
    """Return another lower bound: each word goes to the patches that it is most like, as many as its mass fills.

    A patch holds 1/n, so a word of mass 1/m needs n/m patches. The mean of its n/m largest cosines is the most that it
    can reach, and that mean is at most  z + sum_i (S_i - z)_+ m/n  for any threshold z.
    """
    share = f4(m) / f4(n)
    words = f4(0)
    for j in range(m):
        row = S[j]
        total, upper = f4(0), f4(-2)
        for i in range(n):
            total += row[i]
            upper = max(upper, row[i])
        least, lower = upper, total / f4(n)
        if share < 1:
            for _ in range(HALVINGS):
                z = (lower + upper) * f4(0.5)
                above, count = f4(0), f4(0)
                for i in range(n):
                    above += max(row[i] - z, f4(0))
                    count += f4(1) if row[i] > z else f4(0)
                least = min(least, z + above * share)
                if count * share > 1:
                    lower = z
                else:
                    upper = z
        words += least
    return f4(1) - words / f4(m)


@kernel()
def _transport(S, m, n, reg, tol, max_iter, K, p, q, u, v, s, f, g):
    """Return <P, C> for C = 1 - S and uniform weights, of the plan rounded to exact marginals. S is overwritten.

    The rounding (Altschuler, Weed and Rigollet, NeurIPS 2017, Algorithm 2) makes the plan feasible, so no bound is
    above its cost, however early the iteration stopped.
    """
    P = S.shape[1]
    for j in range(m):
        for i in range(n):
            S[j, i] = -S[j, i]
        for i in range(n, P):
            S[j, i] = S[j, 0]
        p[j] = f4(1) / f4(m)
    for i in range(P):
        q[i] = f4(1) / f4(n) if i < n else f4(0)
    X = S[:m]
    low, span = _lift(X, m, n, reg, v, s)
    if not span < np.inf:
        return f4(np.nan)
    _iterate(X, span, p, q, m, n, reg, f4(tol * SLACK), max_iter, K, u, v, s, f, g)
    for i in range(P):
        s[i] = 0
    for j in range(m):
        for i in range(P):
            s[i] += u[j] * K[j, i] * v[i]
    for i in range(P):
        keep = min(f4(1), q[i] / s[i]) if i < n else f4(0)
        s[i] = q[i] - s[i] * keep  # what is missing in this column
        v[i] *= keep
    cost, missing, moved = 0.0, 0.0, 0.0
    for j in range(m):
        r, c, e = f4(0), f4(0), f4(0)
        for i in range(P):
            x = u[j] * K[j, i] * v[i]
            r += x
            c += x * X[j, i]
            e += s[i] * X[j, i]
        short = max(p[j] - r, f4(0))
        cost += c
        missing += short
        moved += short * e
    if missing > 0:
        cost += moved / missing
    return f4(1 + low + cost)


_rows3, _rows2, _reals = (types.Array(float32, d, "C") for d in (3, 2, 1))
_codes, _ints = types.Array(int32, 2, "C"), types.Array(int64, 1, "C")
_SIDES = (_rows3, _ints, _rows2, _rows3, _ints, _rows2, _ints, _ints)


@kernel()
def _whole(x, y, E, weight):
    """Return weight (1 - <x, y>) of the pooled features, which are the first E numbers of a summary."""
    if weight == 0:
        return f4(0)
    cosine = f4(0)
    for d in range(E):
        cosine += x[d] * y[d]
    return f4(weight) * (f4(1) - cosine)


@kernel(types.void(*_SIDES, float64, float64, float64, int64, _reals, int64, int64))
def _costs(vT, n_of, v_sum, t, m_of, t_sum, first, cols, weight, reg, tol, max_iter, out, start, stop):
    """Write into ``out`` the distances of images start .. stop to their captions cols[first[i] : first[i + 1]]."""
    P, L, E = vT.shape[2], t.shape[1], t_sum.shape[1] - t.shape[2] - 1
    S, K, h, d = np.empty((L + 1, P), f4), np.empty((L, P), f4), np.empty((5, max(P, L)), f4), np.empty((2, max(P, L)))
    for i in range(start, stop):
        for k in range(first[i], first[i + 1]):
            j, cost = cols[k], f4(0)
            if weight < 1:
                _product(t[j], m_of[j], vT[i], S)
                cost = _transport(S, m_of[j], n_of[i], reg, tol, max_iter, K, h[0], h[1], h[2], h[3], h[4], d[0], d[1])
            out[k] = _whole(v_sum[i], t_sum[j], E, weight) + f4(1 - weight) * cost


@kernel(
    types.void(*_SIDES, _rows3, _rows2, _ints, _ints, _reals, *4 * [float64], int64, _reals, _ints, _ints, int64, int64)
)
def _nearest(
    vT, n_of, v_sum, t, m_of, t_sum, first, cols, short_vT, short_t, at, names, bound,
    weight, reg, tol, rounding, max_iter, best, nearest, solved, start, stop
):  # fmt: skip
    """Update ``best`` and ``nearest`` of images start .. stop by their captions cols[first[i] : first[i + 1]].

    Captions come in the order of ``bound``, as long as it is not above ``best``, ``FEW`` at a time. A caption is
    dropped if the bound of its short tokens is above ``best``, or that of its tokens; the rest are solved. ``names``
    are the captions' numbers: of equally near captions the one with the least number is ``nearest``.
    """
    P, L, E = vT.shape[2], t.shape[1], t_sum.shape[1] - t.shape[2] - 1
    S, K, h, d = np.empty((L + 1, P), f4), np.empty((L, P), f4), np.empty((5, max(P, L)), f4), np.empty((2, max(P, L)))
    tighter, rest = np.empty(FEW, f4), f4(1 - weight)
    for i in range(start, stop):
        n = n_of[i]
        order = first[i] + np.argsort(bound[first[i] : first[i + 1]])
        for z in range(0, len(order), FEW):
            some = order[z : z + FEW]
            if bound[some[0]] > best[i]:
                break
            for k in range(len(some)):
                tighter[k] = bound[some[k]]
                if tighter[k] > best[i]:
                    continue
                j = cols[some[k]]
                least = _whole(v_sum[i], t_sum[j], E, weight) - f4(rounding)
                _product(short_t[at[j] : at[j + 1]], m_of[j], short_vT[i], S)
                tighter[k] = least + rest * _patches_relaxed(S, m_of[j], n, h[0])
                if tighter[k] <= best[i]:
                    tighter[k] = max(tighter[k], least + rest * _words_relaxed(S, m_of[j], n))
            for k in np.argsort(tighter[: len(some)]):
                if tighter[k] > best[i]:
                    break
                j, name, cost = cols[some[k]], names[some[k]], f4(0)
                whole = _whole(v_sum[i], t_sum[j], E, weight)
                if weight < 1:
                    _product(t[j], m_of[j], vT[i], S)
                    relaxed = max(_patches_relaxed(S, m_of[j], n, h[0]), _words_relaxed(S, m_of[j], n))
                    if whole - f4(rounding) + rest * relaxed > best[i]:
                        continue
                    cost = _transport(S, m_of[j], n, reg, tol, max_iter, K, h[0], h[1], h[2], h[3], h[4], d[0], d[1])
                distance = whole + rest * cost
                solved[i] += 1
                if distance < best[i] or (distance == best[i] and name < nearest[i]):
                    best[i], nearest[i] = distance, name


@kernel(types.void(_rows3, _ints, _ints, _ints, _codes, _reals, _reals, _rows2, float64, int64, int64))
def _coded(cosines, n_of, order, lengths, codes, along, across, bound, weight, start, stop):
    """Raise ``bound`` [B, b], of images to a block of captions, by what the captions' codes allow.

    ``cosines`` [B, K, N] are those of the image's tokens with the centroids, sorted from the largest. A word at the
    angle r from its centroid is nearer to a patch than the centroid by at most r. Over the patches that a word fills,
    the mean of cos(angle - r) is at most cos(arccos(mean of cos(angle)) - r), by concavity. That is one number for each
    code and length of a caption. The captions come in ``order`` of length, and their codes as [words, captions].
    """
    K, R = cosines.shape[1], len(along)
    reach, mean, total = np.empty(R, f4), np.empty(K, f4), np.empty(len(order), f4)
    rest = f4(1 - weight)
    for i in range(start, stop):
        n, c, at = n_of[i], 0, 0
        while c < len(order):
            m = lengths[c]
            count = 1
            while c + count < len(order) and lengths[c + count] == m:
                count += 1
            want = max(1.0, n / m)
            whole = int(want)
            for k in range(K):
                x = f4(0)
                for z in range(whole):
                    x += cosines[i, k, z]
                if whole < want:
                    x += f4(want - whole) * cosines[i, k, whole]
                mean[k] = x / f4(want)
            for r in range(R):
                x = mean[r // (R // K)]
                y = x * along[r] + np.sqrt(max(f4(1) - x * x, f4(0))) * across[r]
                reach[r] = f4(1) if x >= along[r] else y
            for z in range(count):
                total[z] = 0
            for w in range(m):
                line = codes[0, at + w * count : at + (w + 1) * count]
                for z in range(count):
                    total[z] += reach[line[z]]
            scale = rest / f4(m)
            for z in range(count):
                bound[i, order[c + z]] += rest - total[z] * scale
            c, at = c + count, at + m * count


def _turned(tokens: torch.Tensor) -> np.ndarray:
    """Return tokens [B, N, D] with their places along the vector registers [B, D, P], zeros beyond N."""
    return F.pad(tokens, (0, 0, 0, _padded(tokens.shape[1]) - tokens.shape[1])).transpose(1, 2).contiguous().numpy()


def _sides(turned: np.ndarray, images, captions, first, cols) -> list[np.ndarray]:
    sides = (images.length, images.summary, captions.tokens, captions.length, captions.summary)
    return [turned, *(x.numpy() for x in sides), np.ascontiguousarray(first), np.ascontiguousarray(cols)]


def costs(images, captions, first, cols, *, weight, reg, tol, max_iter) -> np.ndarray:
    """Return the distances of every image i to the captions ``cols[first[i] : first[i + 1]]`` [len(cols)].

    ``images`` and ``captions`` are ``TokenSets`` in float32; ``first`` and ``cols`` are int64.
    """
    out = np.empty(len(cols), f4)
    sides = _sides(_turned(images.tokens), images, captions, first, cols)
    parallel(_costs, len(images), *sides, weight, reg, tol, max_iter, out, least=1)
    return out


def turned(images, basis: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the images' tokens and short tokens as ``nearest`` takes them."""
    return _turned(images.tokens), _turned(images.short(basis))


def nearest(
    turned, images, captions, first, cols, names, bound, *, weight, reg, tol, max_iter, rounding, best, index
) -> int:
    """Update ``best`` [B] and ``index`` [B] by captions as in ``costs``; return the number of problems solved.

    ``names`` [len(cols)] are the captions' numbers in ``index``; ``bound`` [len(cols)] are lower bounds of the
    distances.
    """
    solved = np.zeros(len(images), np.int64)
    sides = _sides(turned[0], images, captions, first, cols)
    short = (turned[1], *(x.numpy() for x in captions.flat))
    how = (weight, reg, tol, rounding, max_iter, best, index, solved)
    parallel(_nearest, len(images), *sides, *short, np.ascontiguousarray(names), bound, *how, least=1)
    return int(solved.sum())


def sorted_cosines(images, centroids) -> np.ndarray:
    """Return the cosines of every image's tokens with the centroids, largest first, padding last [B, K, N]."""
    B, N, D = images.tokens.shape
    out = (images.tokens.reshape(-1, D) @ centroids.T).neg_().view(B, N, -1).transpose(1, 2).contiguous().numpy()
    if int(images.length.min()) < N:
        np.copyto(out, f4(2), where=~images.real.numpy()[:, None])

    def sort(start: int, stop: int) -> None:
        out[start:stop].sort(axis=2)
        np.negative(out[start:stop], out=out[start:stop])

    parallel(sort, B, least=1)
    return out


def raise_by_codes(bound, cosines, images, codebook, z: int, weight: float) -> None:
    """Add the bound by the codes of the ``z``-th block to ``bound`` [B, b], which has the pooled part, in place."""
    numbers = (x.numpy() for x in (images.length, *codebook.blocks[z], codebook.along, codebook.across, bound))
    parallel(_coded, len(images), cosines, *numbers, weight, least=1)
