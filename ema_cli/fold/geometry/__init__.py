"""Where the checkpoints of a run are relative to each other, measured while they are folded."""
