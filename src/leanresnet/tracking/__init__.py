"""Reports to MLflow, which are kept on disk until MLflow has received them. No other room imports mlflow.

Nothing here changes a result, so no stage depends on it.
"""
