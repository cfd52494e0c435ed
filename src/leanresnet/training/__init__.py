"""Everything that determines the weights: augmentation, loss, optimizer, schedule, the training loop, and its files.

An edit here reruns the stages that train. Snapshots, signals and processes belong to `jobs`, MLflow to `tracking`.
"""
