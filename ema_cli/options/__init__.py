"""The options of an average: each is declared once, and checked against the others."""
