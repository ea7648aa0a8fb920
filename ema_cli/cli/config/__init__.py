"""Options from files and from the environment: where they are found, and which value wins."""
