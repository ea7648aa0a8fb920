"""inert_pickle."""
