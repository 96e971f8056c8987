"""A page about one run: what was gathered, what follows from it, and how it is drawn and laid out."""
