"""A finished or half-finished run as something a person can look at: one HTML page, and a table in the terminal.

Reads the run folder and nothing else; knows nothing of Ray, engines or models, and never changes what it reads.
"""

from __future__ import annotations

from csr_ray.report.page import write_report

__all__ = ["write_report"]
