"""Runs of ema-avg under faults: the state that every run must leave, and how often it did."""
