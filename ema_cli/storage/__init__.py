"""Bytes by position: sources, the index of tensors in them, and the one way to read a tensor's elements.

Independent of file formats.
"""
