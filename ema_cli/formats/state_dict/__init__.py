"""The weights in the nested values of a training checkpoint: the search for them, their names, and the step."""
