"""leanresnet: the most accurate ResNet that fits a parameter budget.

Imports point one way: pipeline -> experiment -> {trainer, tracking, checkpoint}
-> {evaluation, optim, models} -> config; `data` and `losses` are leaves.
"""
