"""A training as a process that can be stopped, resumed and spread over several processes.

What determines the weights belongs to `training`.
"""
