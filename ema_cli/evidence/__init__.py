"""What the bytes of the checkpoints say about a plan, before the fold: bounded reads."""
