"""Checkpoints of torch.distributed.checkpoint: folders of its own format, and the safetensors files of single ranks."""
