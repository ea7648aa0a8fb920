"""Models in the layout of Hugging Face: single files, shards, adapters, and the files that a trainer saves beside them."""
