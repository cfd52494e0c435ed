"""Benchmarks: each measures what it compares in one run, alternating, and reports medians (docs/performance.md)."""

from leanresnet.compute.threads import share_cores

# What is measured is what the program does; later than this, torch would be imported.
share_cores()
