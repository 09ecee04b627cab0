"""Decides. Standard library only; no clock, no I/O, no chance: time arrives as an argument."""
