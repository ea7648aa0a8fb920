"""What the weights themselves say about a plan, from a bounded number of reads before the fold."""
