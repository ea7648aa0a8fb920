"""Runs of ema-avg under faults: what every one of them must leave behind, and how often it did."""
