"""MLflow, through its client: at the server that MLFLOW_TRACKING_URI names, else as files in the run folder."""

from __future__ import annotations

import os
import time
from itertools import islice
from typing import Any

from csr_ray.tracking.base import Measured, TrackedRun

_EXPERIMENT = "csr_ray"
_MOST_A_BATCH = 100
_MOST_CHARACTERS = 500


class Mlflow:
    """See `csr_ray.tracking.base.Tracker`. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count."""

    def begin(self, run: TrackedRun, *, known: str | None) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:
            # MLflow refuses files without it, and its small package cannot open a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = run.folder.absolute().as_uri()
        self._client: Any = MlflowClient(tracking_uri=where)
        if known is not None:
            try:
                self._client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self._id = known
                return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        params = iter(Param(key, str(value)[:_MOST_CHARACTERS]) for key, value in run.config.items())
        while batch := list(islice(params, _MOST_A_BATCH)):
            self._client.log_batch(self._id, params=batch)
        return self._id

    def log(self, measured: Measured) -> None:
        from mlflow.entities import Metric

        now_ms = int(1e3 * time.time())
        metrics = [Metric(key, value, now_ms, measured.at) for key, value in measured.values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)
