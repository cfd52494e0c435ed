"""Reports to MLflow, which are kept on disk until MLflow has received them. No other package imports mlflow.

Nothing here changes a result, so no stage depends on it.
"""
