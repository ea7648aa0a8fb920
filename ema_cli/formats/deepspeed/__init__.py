"""Checkpoints of DeepSpeed: the model in one file, or partitions of float32 weights in the files of the ranks."""
