"""Files on disk, for every other package: atomic writing, numbered names, SHA-256, a cache of findings.

    atomic.py       write a file or a folder completely or not at all
    numbering.py    numbered output files that never replace one another
    digest.py       the SHA-256 of a file: computed, cached, or in the background
    reading.py      tell a failure of memory or disk from damage of a file
    cache.py        findings about a file, kept until the file changes

Nothing here imports another package of ldm, or torch.
"""
