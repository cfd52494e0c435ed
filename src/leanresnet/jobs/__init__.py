"""A training as a job that can be stopped and resumed, and that can run in several processes.

Code that determines the weights belongs to `training`.
"""
