"""Checkpoints that nobody should trust: makers of bad files, each with the verdict that it must get."""
