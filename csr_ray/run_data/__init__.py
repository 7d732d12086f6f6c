"""A run's folder as Python objects: its config, rounds, trees, pairs and figures, read by the batch.

`run.py` opens a run, `rows.py` reads its tables, `trees.py` is what a tree of sentences looks like. `import csr_ray`
offers what people use of it. Nothing here writes, takes a lock, or needs Ray.
"""
