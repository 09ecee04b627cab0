"""A stand-in for a vLLM scheduler: the attributes the plug-in touches, and a loop that obeys them.

It lets the plug-in be tested where no vLLM is installed. What the real one does is tested against
the real one, in tests/engine/test_scheduler.py.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum, auto
from types import SimpleNamespace
from typing import Any

from spillway.engine.view import Statuses


class Status(IntEnum):
    RUNNING = auto()
    WAITING = auto()
    PREEMPTED = auto()
    REMOTE_KVS = auto()
    GRAMMAR = auto()
    FINISHED = auto()


STATUSES = Statuses(
    Status.RUNNING, Status.WAITING, Status.PREEMPTED, Status.REMOTE_KVS, Status.GRAMMAR
)


class FakeRequest:
    """A request; running ones past their prompt are given with computed == prompt."""

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        *,
        computed_tokens: int = 0,
        output_tokens: int = 0,
        status: Status = Status.WAITING,
        order: object = None,
        remote: bool = False,
    ) -> None:
        self.request_id = request_id
        self.status = status
        self.num_prompt_tokens = prompt_tokens
        self.num_tokens = self.num_tokens_with_spec = prompt_tokens + output_tokens
        self.num_computed_tokens = computed_tokens
        self.num_output_placeholders = 0
        self.kv_transfer_params = {"do_remote_prefill": True} if remote else None
        extra = None if order is None else {"spillway": order}
        self.sampling_params = SimpleNamespace(extra_args=extra)

    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def is_prefill_chunk(self) -> bool:
        return self.num_computed_tokens < self.num_prompt_tokens


class Queue(deque[FakeRequest]):
    def add_request(self, request: FakeRequest) -> None:
        self.append(request)

    def remove_requests(self, requests: list[FakeRequest]) -> None:
        kept = [one for one in self if one not in requests]
        self.clear()
        self.extend(kept)


class FakeScheduler:
    """First come, first served, as vLLM does it: running ones in order, then waiting ones."""

    def __init__(self, *, step_tokens: int = 2048, blocks: int = 1000) -> None:
        self.max_num_scheduled_tokens = step_tokens
        self.scheduler_config = SimpleNamespace(
            long_prefill_token_threshold=0, async_scheduling=False
        )
        self.requests: dict[str, FakeRequest] = {}
        self.running: list[FakeRequest] = []
        self.waiting = Queue()
        self.finished_recving_kv_req_ids: set[str] = set()
        self.block_size = 16
        self.cache_config = SimpleNamespace(enable_prefix_caching=False)
        self.kv_cache_config = SimpleNamespace(num_blocks=blocks, kv_cache_groups=["one"])
        self.kv_cache_manager = SimpleNamespace(usage=0.25)
        self.num_spec_tokens = 0
        self.parallel_config = SimpleNamespace(data_parallel_rank=0)
        self.vllm_config = SimpleNamespace(
            additional_config={}, kv_transfer_config=SimpleNamespace(kv_role="kv_consumer")
        )
        self.seen: list[tuple[int, int, list[str]]] = []  # limits and queue during each call

    def put(self, *requests: FakeRequest) -> None:
        for request in requests:
            self.requests[request.request_id] = request
            if request.status is Status.RUNNING:
                self.running.append(request)
            elif request.status is not Status.REMOTE_KVS:
                self.waiting.append(request)

    def decodes(self, seqs: int, context_tokens: int) -> None:
        for number in range(seqs):
            self.put(decode(f"d{number}", context_tokens))

    def schedule(self, *args: Any) -> Any:
        cap = self.scheduler_config.long_prefill_token_threshold
        left = self.max_num_scheduled_tokens
        self.seen.append((left, cap, [one.request_id for one in self.waiting]))
        taken: dict[str, int] = {}
        for request in self.running:
            left -= self._give(request, left, cap, taken)
        while self.waiting and left:
            request = self.waiting.popleft()
            request.status = Status.RUNNING
            self.running.append(request)
            left -= self._give(request, left, cap, taken)
        return SimpleNamespace(
            num_scheduled_tokens=taken, total_num_scheduled_tokens=sum(taken.values())
        )

    def update_from_output(self, output: Any, results: Any = None) -> None:
        for request_id in output.num_scheduled_tokens:
            request = self.requests[request_id]
            if not request.is_prefill_chunk:
                request.num_tokens = request.num_tokens_with_spec = request.num_computed_tokens + 1

    def add_request(self, request: FakeRequest) -> None:
        self.put(request)

    def shutdown(self) -> None: ...

    def _give(self, request: FakeRequest, left: int, cap: int, taken: dict[str, int]) -> int:
        tokens = min(request.num_tokens - request.num_computed_tokens, left, cap or left)
        if tokens:
            taken[request.request_id] = tokens
            request.num_computed_tokens += tokens
        return tokens


def decode(request_id: str, context_tokens: int, *, order: object = None) -> FakeRequest:
    """A running stream with `context_tokens` of KV, one token to compute."""
    return FakeRequest(
        request_id,
        context_tokens,
        computed_tokens=context_tokens,
        output_tokens=1,
        status=Status.RUNNING,
        order=order,
    )
