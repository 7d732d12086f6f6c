"""Benchmarks: metrics from answers and truth. Knows nothing of models; answers come in as text."""
