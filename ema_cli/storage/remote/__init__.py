"""Files in remote stores, read by ranges through fsspec."""
