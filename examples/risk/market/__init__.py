"""A model in a package of its own."""

from .model import Loss, Market, Ruined

__all__ = ["Loss", "Market", "Ruined"]
