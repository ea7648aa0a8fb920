"""Readers: each turns the structure of one file format into a ``TensorIndex``. No reader reads tensor data."""
