"""csr_ray: calibrated self-rewarding for vision-language models, on Ray.

This package is the algorithm and the product; `actors` is the machinery that runs it.

For programs and notebooks it offers `run`, which does what `csr-ray run` does, and `load_run`, which reads a run's
folder. They are imported when they are asked for, so that `import csr_ray` costs nothing.

Example:
    >>> from csr_ray import load_run                                               # doctest: +SKIP
    >>> run = load_run("runs/tiny-world")                                          # doctest: +SKIP
    >>> print(next(iter(run.rounds[0].trees())))                                   # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from csr_ray.app.interface import run
    from csr_ray.config.schema import Config
    from csr_ray.errors import ActorFailure, ConfigError, DamageError, NoDataError, StorageError, UserError
    from csr_ray.records import Example, MarkedAnswer, Rejection, Target
    from csr_ray.run_data.rows import Quarantine, Rows
    from csr_ray.run_data.run import Round, Run, Verdict, load_run
    from csr_ray.run_data.trees import Answer, Node, Tree

_OFFERED = {
    "csr_ray.app.interface": ("run",),
    "csr_ray.config.schema": ("Config",),
    "csr_ray.errors": ("ActorFailure", "ConfigError", "DamageError", "NoDataError", "StorageError", "UserError"),
    "csr_ray.records": ("Example", "MarkedAnswer", "Rejection", "Target"),
    "csr_ray.run_data.rows": ("Quarantine", "Rows"),
    "csr_ray.run_data.run": ("Round", "Run", "Verdict", "load_run"),
    "csr_ray.run_data.trees": ("Answer", "Node", "Tree"),
}
_MODULES = {name: module for module, names in _OFFERED.items() for name in names}

__all__ = [
    "ActorFailure",
    "Answer",
    "Config",
    "ConfigError",
    "DamageError",
    "Example",
    "MarkedAnswer",
    "NoDataError",
    "Node",
    "Quarantine",
    "Rejection",
    "Round",
    "Rows",
    "Run",
    "StorageError",
    "Target",
    "Tree",
    "UserError",
    "Verdict",
    "__version__",
    "load_run",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import what is offered when it is asked for first."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
