"""Records of the core as people see them on the terminal."""
