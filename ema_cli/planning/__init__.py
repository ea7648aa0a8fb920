"""Decide what is read, averaged, copied and written, and refuse what cannot be averaged."""
