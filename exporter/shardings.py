"""Finds the ways to run a model on several boards at once, and proves each."""
