"""Write outputs so that a name never refers to half of one.

An output is built under a random name beside its path, made durable, read back from the disk and compared, checked by
the safetensors library, and only then renamed. One lock per output keeps two runs apart, and leftovers of killed runs
are removed only under that lock.
"""
