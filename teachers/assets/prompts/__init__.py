"""Prompts that ship with mfd, written for it, to try things out with."""
