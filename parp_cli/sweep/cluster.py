"""A pool of workers on a Ray cluster (extra `cluster`): machines with parp, which all see the run folder."""

from typing import Any

from parp_cli.errors import UsageError
from parp_cli.sweep.tasks import Failure, Task, lost_worker, run_task

_STOP_SECONDS = 30.0
"""For tasks to save their state when they are asked to stop."""


class RayPool:
    """As many tasks at a time as the cluster has GPUs, or CPU cores.

    The cluster is the one that this process already uses, else that of RAY_ADDRESS, else one that runs on this machine,
    else a new one here. Ray restarts a task whose machine is lost, and the task continues from the run folder.

    Args:
        device: `cuda` for one GPU per task, `cpu` for one core per task.

    Raises:
        UsageError: ray is not installed, or there is no such cluster.
    """

    def __init__(self, device: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("a cluster needs Ray", hint="pip install 'parp-cli[cluster]'") from error
        self._ray: Any = ray
        self._joined = not self._ray.is_initialized()
        try:
            self._ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            hint = "start one with `ray start --head`, or unset RAY_ADDRESS to use this machine"
            raise UsageError("no Ray cluster can be reached", details=str(error).splitlines()[:1], hint=hint) from error
        self._resource = "GPU" if device == "cuda" else "CPU"
        needs = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
        self._work = self._ray.remote(**needs)(run_task)
        self._tasks: dict[Any, Task] = {}

    def has_room(self) -> bool:
        """Whether the cluster, in its present size, has more places than tasks."""
        return len(self._tasks) < max(1, int(self._ray.cluster_resources().get(self._resource, 0)))

    def start(self, task: Task) -> None:
        """Hand a task to the cluster."""
        self._tasks[self._work.remote(task)] = task

    def ended(self, seconds: float) -> list[tuple[str, Failure | None]]:
        """Wait at most this long for a task to end.

        Raises:
            ray.exceptions.RayTaskError: an exception ended one.
        """
        gone, _ = self._ray.wait(list(self._tasks), timeout=seconds)
        tasks = {reference: self._tasks.pop(reference) for reference in gone}
        return [(task.cell.key, self._failure(reference, task)) for reference, task in tasks.items()]

    def stop(self) -> None:
        """Ask all tasks to save their state and end, and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_STOP_SECONDS)
        if self._joined:
            self._ray.shutdown()

    def _failure(self, reference: Any, task: Task) -> Failure | None:
        """Why a task failed, if it did."""
        exceptions = self._ray.exceptions
        try:
            answer: Failure | None = self._ray.get(reference)
            return answer
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:  # its machine or process was lost more often than Ray tries
            return lost_worker(task, "its Ray worker was lost", details=str(error).splitlines()[:1])
