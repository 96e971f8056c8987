"""Recipes that ship with mfd: data only. See README.md in this folder."""
