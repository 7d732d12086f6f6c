"""Data through Ray Data: prompts read on the cluster, a run's files as data sets, and bulk work without a tree."""
