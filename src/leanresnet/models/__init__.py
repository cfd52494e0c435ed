"""The networks: their layers, their number of parameters and operations, and a trained one on disk.

How a network is trained does not belong here.
"""
