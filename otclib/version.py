"""The version of the package, which every run folder records."""

__version__ = "0.1.0"
