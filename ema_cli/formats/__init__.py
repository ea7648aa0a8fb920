"""The file formats: each reader turns the structure of a file or a folder into a ``Structure``.

No reader reads tensor data, apart from the step.
"""
