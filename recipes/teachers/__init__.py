"""Recipes of `mfd teachers train`."""
