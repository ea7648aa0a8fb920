"""Models in the layout of Hugging Face: single files, shards, adapters, and what a trainer saves beside them."""
