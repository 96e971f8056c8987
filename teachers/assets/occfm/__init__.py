"""Weights of the small OccFM teacher; see README.md."""
