"""Which images of a set are copies of each other, or nearly so.

A targeted attack plants one image many times, each time with another caption of the attacker's class. What is learned
from an image grows with the number of its copies, so pairs that share an image have to be counted as one.

Every image is averaged to 12 x 12 pixels and centred. Two images are alike if these are correlated enough; brightness
and contrast do not matter. Candidates are found by locality-sensitive hashing (Charikar, STOC 2002): images whose
random projections have the same signs in one of ``BANDS`` bands are compared with ``NEIGHBOURS`` others there. So the
time grows as N log N. Copies have all signs in common, so they are missed only where many other images share them.
Images of a single colour are not compared.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

SIDE = 12  # pixels of what is compared
BANDS = 16
NEIGHBOURS = 8  # in each band, with which an image is compared


def fingerprints(images: Tensor) -> Tensor:
    """Return unit vectors [B, 3 * SIDE ** 2] of uint8 images [B, 3, H, W]; their products are correlations."""
    small = F.adaptive_avg_pool2d(images.float(), SIDE).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def groups(prints: Tensor, alike: float) -> Tensor:
    """Return the group of each image [N], from 0: images that are alike, directly or by way of others, share one.

    Parameters
    ----------
    prints : unit vectors [N, D], see ``fingerprints``.
    alike : the least correlation of two images that are alike.

    Examples
    --------
    The first and the last image are copies.

    >>> groups(torch.eye(4)[[0, 1, 2, 0]], alike=0.95).tolist()
    [0, 1, 2, 0]
    """
    n = len(prints)
    bits = max(8, math.ceil(math.log2(n)))
    axes = torch.randn(prints.shape[1], BANDS * bits, generator=torch.Generator().manual_seed(0)).to(prints)
    signs = (prints @ axes > 0).view(n, BANDS, bits).cpu().numpy()
    codes = signs @ (1 << np.arange(bits, dtype=np.int64))  # [N, BANDS]
    links = []
    for code in codes.T:
        order = np.argsort(code, kind="stable")
        for step in range(1, min(NEIGHBOURS + 1, n)):
            one, other = order[:-step], order[step:]
            same = code[one] == code[other]
            one, other = one[same], other[same]
            near = ((prints[one] * prints[other]).sum(1) >= alike).cpu().numpy()
            links.append(np.stack([one[near], other[near]]))
    one, other = np.concatenate(links, 1) if links else np.zeros((2, 0), dtype=int)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))


def mean_of_each(group: Tensor, values: Tensor) -> Tensor:
    """Return the mean of the values [N] over each image's group [N].

    >>> mean_of_each(torch.tensor([0, 0, 1]), torch.tensor([0.2, 0.4, 0.5])).tolist()
    [0.30000001192092896, 0.30000001192092896, 0.5]
    """
    sums = torch.zeros(int(group.max()) + 1).index_add_(0, group, values)
    return (sums / torch.bincount(group))[group]


def few_of_each(group: Tensor, among: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Return which images are drawn [N] bool: of every group at most ``most`` of those ``among`` [N] bool, at random.

    >>> group, among = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
    >>> few_of_each(group, among, 1, torch.Generator().manual_seed(0)).tolist()
    [True, False, False, True]
    """
    order = torch.randperm(len(group), generator=rng)
    order = order[among[order]]
    order = order[group[order].argsort(stable=True)]
    starts = torch.ones(len(order), dtype=torch.bool)
    starts[1:] = group[order[1:]] != group[order[:-1]]
    at = torch.arange(len(order))
    place = at - torch.where(starts, at, 0).cummax(0).values if len(order) else at
    drawn = torch.zeros(len(group), dtype=torch.bool)
    drawn[order[place < most]] = True
    return drawn
