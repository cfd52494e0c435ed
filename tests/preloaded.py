"""The imports that `forked` does once for all its forks."""
# ruff: noqa: F401

import mlflow.pytorch
import mlflow.store.tracking.sqlalchemy_store
import sklearn.model_selection
import torch._dynamo
from mlflow.utils import requirements_utils

import leanresnet.data.division
import leanresnet.evaluation.report
import leanresnet.jobs.train_job

# At the first model that a process logs, MLflow searches all installed packages, for a second.
requirements_utils._init_modules_to_packages_map()
