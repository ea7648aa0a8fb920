"""One run in several processes, which torchrun or srun has started."""
