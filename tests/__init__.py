"""The tests of ema-avg; the docstring of each test states in one line what it checks."""
