"""Models in the layout of Hugging Face: single files, shards, adapters, and the files of a trainer beside them."""
