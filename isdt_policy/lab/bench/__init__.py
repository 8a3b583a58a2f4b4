"""Benchmarks: each number is a ratio against a stated baseline, measured in turns in one process."""
