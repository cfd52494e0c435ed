"""The networks: their layers, their number of parameters and operations, and a trained one on disk.

The training of a network does not belong here.
"""
