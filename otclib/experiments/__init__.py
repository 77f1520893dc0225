"""Experiments: the demo, the grid of all systems, its records and the tables that are made of them."""
