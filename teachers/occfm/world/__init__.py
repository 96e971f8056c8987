"""A made-up driving world: streets with traffic, drawn from a seed and cut into labelled cells."""
