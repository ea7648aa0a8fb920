"""Averages in memory: the tensors of an average one after the other, or a state dict, without a file."""
