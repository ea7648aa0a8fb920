"""Checkpoints by their real makers, averaged through the command line, loaded back by the makers."""
