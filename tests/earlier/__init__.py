"""What earlier versions wrote: an archive per version, and the program that made them."""
