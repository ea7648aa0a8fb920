"""Recomputed BatchNorm statistics: the only room that runs code of the user, in the modules that the user names."""
