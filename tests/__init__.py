"""The tests of ema-avg; each says in one line what it holds the program to."""
