"""The values of params.yaml: their types, ranges and meaning, and how they are read.

A key, its range or its description changes here. How a value is used does not belong here, nor do paths, devices
and servers, which are arguments and environment variables.
"""
