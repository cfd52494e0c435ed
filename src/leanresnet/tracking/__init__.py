"""MLflow: what a run reports, kept on disk until MLflow has it. Nothing else imports mlflow.

Nothing here changes a result, so no stage depends on it.
"""
