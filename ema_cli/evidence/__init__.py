"""Whether the checkpoints are one series, in the order of training: a small sample of each is read to find out."""
