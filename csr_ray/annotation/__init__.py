"""A person as judge: which answers of a run are compared, what people said of them, and what follows from it.

Reads the run folder and the files of verdicts in it. Knows nothing of the network; `csr_ray.app.annotate` serves the
page (docs/annotate.md).
"""
