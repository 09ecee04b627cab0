"""The process that forks vLLM nodes: it imports vLLM once, so that a node starts in seconds.

    python -m spillway.vllmcluster.parent MODEL_FOLDER SHAPE

It first makes the model there. Then it reads one order per line of its standard input, an object
with `start` (a name), `arguments` (those of vLLM's API server), `environment`, `core`, `log`; and
says one JSON object per line: `ready`, `started` with a pid, `ended` with a pid and a status. It
ends, and all nodes with it, when its standard input does. Each node leads a process group of its
own, engine process included, which whoever gave the order may signal.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

POLL_S = 0.05
PR_SET_PDEATHSIG = 1
PRELOADED = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.llama",
    "vllm.distributed.kv_transfer.kv_connector.v1.nixl",
    "vllm.distributed.nixl_utils",
    "torch._dynamo",
    "transformers",
    "uvicorn",
)


def main() -> None:
    """Run until standard input ends."""
    folder, shape_name = Path(sys.argv[1]), sys.argv[2]
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like one of our lines
    from spillway.vllmcluster.model import make_model

    model = make_model(folder, shape_name)
    _preload()
    os.register_at_fork(after_in_child=_die_with_parent)
    say.write(json.dumps({"ready": str(model)}) + "\n")
    nodes: set[int] = set()
    unread = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(order)
                nodes.add(pid)
                say.write(json.dumps({"started": order["start"], "pid": pid}) + "\n")
        for pid in list(nodes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                nodes.discard(pid)
                _kill_group(pid)  # an engine process may outlive its API server
                code = os.waitstatus_to_exitcode(status)
                say.write(json.dumps({"ended": pid, "status": code}) + "\n")
    for pid in nodes:
        _kill_group(pid)
    for pid in nodes:
        os.waitpid(pid, 0)


def _preload() -> None:
    """Import what a node needs, and let vLLM fork its engine process where it would spawn it."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    for name, module in list(sys.modules.items()):
        # Only in vLLM: to look into the lazy modules of others imports things that are not here.
        if name.split(".")[0] == "vllm" and "get_mp_context" in vars(module):
            module.get_mp_context = lambda: context  # type: ignore[attr-defined]


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if not pid:
        _become_node(order)
    return pid


def _become_node(order: dict[str, Any]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        os.environ.update(order["environment"])
        os.sched_setaffinity(0, {order["core"]})
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        sys.argv = ["api_server", *order["arguments"]]
        from vllm.entrypoints.launchers.api_server.entry import main as serve

        serve()
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The traceback of a failure has to be in the log before the process goes.
        if status:
            import traceback

            traceback.print_exc()
        os._exit(status)


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that forked it dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
