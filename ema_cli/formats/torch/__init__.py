"""The formats of ``torch.save``: the zip format, and the one before torch 1.6."""
