"""Write files so that a name never stands for half of one.

An output is built under a random name beside its place, made durable, read back from the disk and compared, checked
by the safetensors library, and only then renamed. One lock per output keeps two runs apart, and leftovers of killed
runs are swept only under that lock.
"""
