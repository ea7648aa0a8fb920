"""The fold: weighted sums of tensors in bounded blocks. Knows no file format and no EMA."""
