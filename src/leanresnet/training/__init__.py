"""Everything that determines the weights: augmentation, loss, optimizer, schedule, the training loop, and its files.

A change here causes DVC to rerun the stages that train. Snapshots, signals and processes belong to `jobs`, and MLflow
to `tracking`.
"""
