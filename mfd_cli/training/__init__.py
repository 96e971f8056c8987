"""The distillation loop and what surrounds it."""
