"""The images: where they come from, how they are verified, and how they are divided into splits.

A new data set belongs here. Augmentation belongs to `training`.
"""
