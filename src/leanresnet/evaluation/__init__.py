"""The report on a trained model: its predictions, measures and pictures, as files.

Comparisons of models belong to `analysis`.
"""
