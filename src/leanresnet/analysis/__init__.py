"""What is read from finished results: comparisons, lineage, the champion, and the search for architectures.

No stage depends on it.
"""
