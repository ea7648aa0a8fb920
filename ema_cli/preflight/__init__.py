"""May a plan be carried out? Checked before any tensor is read."""
