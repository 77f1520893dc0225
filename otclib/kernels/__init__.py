"""Sinkhorn compiled for the machine at hand: ``cpu`` by Numba, ``cuda`` by Triton. Loaded when first needed."""
