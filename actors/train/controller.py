"""Ray Train with a controller whose handle its caller has from the first moment on, so that it can always be ended.

`fit` waits for the controller in a call of Ray. A thread that still stands in it when Ray is shut down crashes the
process, so whoever ends a group has to be able to end the controller, also one whose process has only begun to start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController


class HeldTrainer(TorchTrainer):  # type: ignore[misc]  # the base class has no types
    """`TorchTrainer`, but for how its controller is made.

    Args:
        begin: is called once, with what makes the controller, and returns its handle; an error of it ends `fit`.
        options: those of `TorchTrainer`.
    """

    def __init__(self, *, begin: Callable[[Callable[[], Any]], Any], **options: Any) -> None:
        super().__init__(**options)
        self._begin = begin

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
        runtime_env = {"env_vars": environment}
        controller_class = ray.remote(num_cpus=0, label_selector=here, runtime_env=runtime_env)(TrainController)
        controller = self._begin(lambda: controller_class.remote(**options))
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
