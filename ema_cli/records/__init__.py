"""The records that are handed from one step of a run to the next: frozen, no I/O."""
