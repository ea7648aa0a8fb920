"""The shares of an average: how they are computed, and numbers that describe them. Pure float64 math."""
