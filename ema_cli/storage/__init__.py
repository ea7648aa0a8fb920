"""Where bytes lie: sources, extents and the one way to read elements of a tensor. Knows no file format."""
