"""The values of params.yaml: their types, ranges and meaning, and how they are read.

A key, its range or its description is changed here. The use of a value does not belong here, nor do paths, devices and
servers, which are arguments and environment variables.
"""
