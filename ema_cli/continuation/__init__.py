"""Continue a previous average with new checkpoints (``--continue-from``)."""
