"""Find the checkpoints that the command line names, open them, and put them in order."""
