"""continuation."""
