"""The report: records with a versioned schema, and functions from records to text."""
