"""Experiments: the demo, the grid of all systems, its records, and the tables made from the records."""
