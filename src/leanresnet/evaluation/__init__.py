"""The report on a trained model: its predictions, its measures and its pictures, as files.

What is compared between models belongs to `analysis`.
"""
