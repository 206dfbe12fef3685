"""
Public formats, one file each: `LICENSE`; `read(path, root, cache)`, which gives the rows of a file on disk in parts,
each with the folder of its images; and `pairs(row, root)`, which gives the pairs of a row.
"""
