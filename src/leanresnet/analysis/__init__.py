"""The analysis of finished results: comparisons, lineage, the champion, and the search for architectures.

No stage depends on it.
"""
