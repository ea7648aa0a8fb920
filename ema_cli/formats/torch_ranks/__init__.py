"""Checkpoints of which every rank saved its own part with ``torch.save``: ``model_world_size_2_rank_0.pt``."""
