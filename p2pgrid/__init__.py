"""A compute grid with no master to lose."""

__version__ = "0.1.0"
