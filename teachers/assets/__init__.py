"""Data and weights that ship with mfd."""
