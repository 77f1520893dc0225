"""Which caption of a pool is nearest to an image by transport: exactly, and with few problems solved."""

from otclib.matching.pool import (
    CaptionPool,
    Match,
    Ranking,
    distances,
    lower_bound,
    match,
    nearest,
    rank_own,
)
from otclib.matching.token_sets import Codebook, TokenSets

__all__ = [
    "CaptionPool",
    "Codebook",
    "Match",
    "Ranking",
    "TokenSets",
    "distances",
    "lower_bound",
    "match",
    "nearest",
    "rank_own",
]
