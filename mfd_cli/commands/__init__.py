"""One file per verb, each a short story in calls to the layers below. Torch is imported inside the functions."""
