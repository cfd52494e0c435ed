"""Benchmarks: each measures what it compares in one run, alternating, and reports medians (docs/performance.md)."""
