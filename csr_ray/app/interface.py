"""What `import csr_ray` offers besides reading: the commands that are functions, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csr_ray.config.schema import Config
from csr_ray.run_data.run import Run, load_run


def run(
    config: str | Path | Mapping[str, Any] | Config, *, fresh: bool = False, redo: bool = False, **overrides: Any
) -> Run:
    """Do what `csr-ray run` does, and return the run.

    A half-finished run folder goes on where it was, and of a finished one only the result is shown. What the terminal
    says of a run is printed here, too. Ctrl-C stops it, as it does there, by a KeyboardInterrupt; call the function
    again to go on.

    Args:
        config: path of a YAML config; or its sections with their keys, as a mapping; or a config, such as
            `Run.config` of another run. `csr-ray config` lists every key.
        fresh: move an existing run folder aside and start a new one.
        redo: train again what a damaged adapter was made by, and do again all that stood on it.
        **overrides: keys that are to be otherwise than the config has them: dotted keys from a mapping
            (`**{"run.rounds": 1}`), or sections with some keys (`run={"rounds": 1}`).

    Raises:
        ConfigError: a key, value or path cannot be used.
        NoDataError: there is no usable prompt.
        UserError: something else that only the user can mend; the message says how.
        ActorFailure: an actor died, or answered wrongly, for a reason that a new one would not mend.

    Example:
        >>> import csr_ray                                                         # doctest: +SKIP
        >>> short = {"run.rounds": 1, "run.dir": "runs/short"}                     # doctest: +SKIP
        >>> run = csr_ray.run("configs/tiny-world.yaml", **short)                  # doctest: +SKIP
        >>> run.rounds[0].figures["eval"]["chair_s"]                               # doctest: +SKIP
        0.103
    """
    from csr_ray.app.run import run_given
    from csr_ray.config.load import load_config

    folder = run_given(load_config(config, overrides=overrides), fresh=fresh, redo=redo)
    return load_run(folder.shown)
