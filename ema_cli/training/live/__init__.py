"""The live EMA of a model, and its snapshots."""
