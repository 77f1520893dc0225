"""Entropic optimal transport: ``sinkhorn`` for many small problems at once, ``exact`` by POT for comparison."""

from otclib.transport.solver import SAFE_RANGE, Transport, compiled, exact, sinkhorn

__all__ = ["SAFE_RANGE", "Transport", "compiled", "exact", "sinkhorn"]
