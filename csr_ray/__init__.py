"""csr_ray: calibrated self-rewarding for vision-language models, on Ray.

This package is the algorithm and the product; `actors` is the machinery that runs it.
"""

__version__ = "0.1.0"
