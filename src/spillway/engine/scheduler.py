"""The vLLM side of the plug-in: two scheduler classes, and the factory that chooses between them.

`--scheduler-cls spillway.engine.scheduler.make`. A class that is not an AsyncScheduler would leave
every second batch of an asynchronous engine empty, so there is one for either kind. All that they
add is in `plugin.py`; arguments pass through untouched, since they differ between releases.
"""

from __future__ import annotations

import os
from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from spillway.engine.compat import statuses_of
from spillway.engine.plugin import Plugin
from spillway.engine.settings import load_settings


class Deflecting:
    """Mixed into a scheduler class, before it."""

    spillway: Plugin

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises ConfigError on settings that make no sense; the engine then does not start."""
        super().__init__(*args, **kwargs)
        scheduler: Any = self
        settings = load_settings(scheduler.vllm_config.additional_config, os.environ)
        self.spillway = Plugin(
            self, settings, statuses_of(RequestStatus), engine_version=vllm.__version__
        )

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        steering = self.spillway.before_schedule()
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.spillway.restore(steering)
        self.spillway.after_schedule(output)
        return output

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        results = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        self.spillway.after_update(scheduler_output)
        return results

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super().add_request(request, *args, **kwargs)  # type: ignore[misc]
        self.spillway.added(request)

    def shutdown(self) -> None:
        self.spillway.close()
        super().shutdown()  # type: ignore[misc]


class DeflectScheduler(Deflecting, Scheduler):  # type: ignore[misc]
    """Steers a synchronous engine."""


class DeflectAsyncScheduler(Deflecting, AsyncScheduler):  # type: ignore[misc]
    """Steers an engine that schedules the next batch while the last one runs."""


def make(*args: Any, **kwargs: Any) -> Scheduler:
    """Return the scheduler for an engine's configuration; vLLM calls this in place of a class."""
    vllm_config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    is_async = vllm_config.scheduler_config.async_scheduling
    return (DeflectAsyncScheduler if is_async else DeflectScheduler)(*args, **kwargs)
