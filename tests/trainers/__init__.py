"""How trainers and libraries name and fill their files: a table by field, each entry with its source."""
