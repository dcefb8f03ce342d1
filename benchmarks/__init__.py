"""Figures of shoal, each a ratio measured in one run; results go to `benchmarks/results/`."""
