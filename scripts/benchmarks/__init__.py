"""Measurements of ema-avg, each against what it can be compared with in the same run: see ``scripts/bench --help``."""
