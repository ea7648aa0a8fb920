"""Helpers that tests share: makers of checkpoints, exact folds to compare with, servers."""
