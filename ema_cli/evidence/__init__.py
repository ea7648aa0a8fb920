"""What the weights say about a plan before the fold: whether it is one series, in order. Bounded reads."""
