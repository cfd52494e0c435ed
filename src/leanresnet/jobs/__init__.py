"""A training as a process that can be stopped, resumed and spread over several processes.

The training itself belongs to `training`.
"""
