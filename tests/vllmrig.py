"""Drives vLLM's real schedulers without a model: their inputs are made up, their decisions are not.

Only tests that run where vLLM is installed import this. A stand-in for the model runner answers
each step with a token per finished prompt or decode; a stand-in for the KV connector lets requests
wait for remote KV until the test says that it has arrived.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple
from unittest.mock import Mock

import torch
from vllm.config import (
    CacheConfig,
    KVTransferConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from spillway.clock import ManualClock
from spillway.engine.compat import statuses_of
from spillway.engine.plugin import Plugin
from spillway.wire.report import StepTaken

BLOCK_TOKENS = 16
STREAMS = [f"d{number}" for number in range(16)]
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 65536,
    "torch_dtype": "bfloat16",
}

PULLING = {
    "kv_connector": "FakeConnector",
    "kv_connector_module_path": "vllmrig",
    "kv_role": "kv_consumer",
    "kv_load_failure_policy": "recompute",
}
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}


class FakeConnector(base.KVConnectorBase_V1, base.SupportsHMA):
    """The scheduler's half of a connector: loads what a request asks to load, and moves nothing."""

    def get_num_new_matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int, bool]:
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            return len(request.prompt_token_ids) - computed_tokens, True
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, external_tokens: int) -> None:
        if request.kv_transfer_params:
            request.kv_transfer_params["do_remote_prefill"] = False

    def build_connector_meta(self, scheduler_output: Any) -> base.KVConnectorMetadata:
        return base.KVConnectorMetadata()

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...


class SendingWorker(NixlPullConnectorWorker):
    """The worker's half of vLLM's NIXL connector, with its own leases, without memory or peers.

    fetched: names of requests whose KV a decode node says that it has.
    """

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.nixl_wrapper = Mock(get_new_notifs=self._notices)
        self.transfer_topo = Mock(tp_ratio=lambda readers: 1)
        self.xfer_stats = Mock()
        self.tp_rank = self.pcp_rank = 0
        self.world_size = 1
        self.use_host_buffer = self._has_mamba = self.enable_permute_local_kv = False
        self._ready_requests, self._failed_recv_reqs = Queue(), Queue()
        self._recving_transfers: dict[str, Any] = {}
        self._recving_metadata: dict[str, Any] = {}
        self._recv_failures: set[str] = set()
        self._replicated_pcp_done_sending: set[str] = set()
        self._reqs_to_process: set[str] = set()
        self._reqs_to_send: dict[str, float] = {}
        self.consumer_notification_counts_by_req = defaultdict(int)
        self.expected_consumer_notifications_by_req = {}

    def _notices(self) -> dict[str, list[bytes]]:
        names, self.fetched = self.fetched, []
        return {"decode": [f"{name}:1".encode() for name in names]}

    def _cleanup_remote_engines(self) -> None: ...

    def shutdown(self) -> None: ...

    def step(self, metadata: Any) -> set[str]:
        """Return what is done sending, after a step with what the scheduler says."""
        self.start_load_kv(metadata)
        return self.get_finished()[0]


class Step(NamedTuple):
    """One step as the engine scheduled it. tokens: per request id. computed: before the step."""

    tokens: dict[str, int]
    computed: dict[str, int]

    def prefill(self, prompts: dict[str, int]) -> dict[str, tuple[int, int]]:
        """Return (tokens, context) of each request that still had prompt to compute."""
        return {
            key: (self.tokens[key], self.computed[key])
            for key in self.tokens
            if self.computed[key] < prompts[key]
        }


class Rig:
    """A scheduler, the requests it was given, and the trace of what it did.

    prompts: length per request id.  trace: one Step per batch, empty batches left out.
    after_step: called with each finished step's tokens, to move a test's clock.
    worker: of a rig that is `sending`, which has the scheduler's half of the NIXL connector too.
    """

    def __init__(
        self,
        make: Any,
        folder: Path,
        *,
        asynchronous: bool = False,
        remote: bool = False,
        sending: bool = False,
        spillway: dict[str, object] | None = None,
        step_tokens: int = 2048,
        seqs: int = 64,
        blocks: int = 8192,
        caching: bool = False,
        policy: str = "fcfs",
    ) -> None:
        transfer = NIXL if sending else PULLING if remote else None
        config = _config(folder, step_tokens, seqs, asynchronous, transfer, caching, policy)
        config.additional_config = {"spillway": spillway} if spillway is not None else {}
        config.cache_config.num_gpu_blocks = blocks
        spec = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=16, dtype=torch.bfloat16
        )
        self.scheduler = make(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256) if caching else None
        self._depth = 2 if asynchronous else 1
        self.worker = SendingWorker() if sending else None
        self._batches: deque[tuple[Any, Step, set[str]]] = deque()
        self._arrived: set[str] = set()
        self._failed: set[str] = set()
        self.prompts: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.trace: list[Step] = []
        self.after_step: Any = None
        self.noted: list[StepTaken] = []

    def add(
        self,
        name: str,
        prompt_tokens: int,
        output_tokens: int = 64,
        *,
        remote: bool = False,
        held: bool = False,
        order: str | None = None,
        first_token: int = 1,
        priority: int = 0,
    ) -> Request:
        extra: dict[str, Any] = {} if order is None else {"spillway": order}
        if remote:
            extra["kv_transfer_params"] = {"do_remote_prefill": True}
        if held:
            extra["kv_transfer_params"] = {"do_remote_decode": True}
        params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, extra_args=extra or None)
        request = Request(
            request_id=name,
            prompt_token_ids=[first_token] * prompt_tokens,
            sampling_params=params,
            pooling_params=None,
            block_hasher=self._hasher,
            priority=priority,
        )
        self.prompts[name] = prompt_tokens
        self.scheduler.add_request(request)
        return request

    def arrive(self, *names: str) -> None:
        """The KV of these has arrived; the scheduler hears of it with the next results."""
        self._arrived.update(names)

    def fail(self, *names: str) -> None:
        """The KV of these will not arrive."""
        self._failed.update(names)

    def step(self) -> Step | None:
        """Schedule, and hand back the results of the oldest batch when the pipeline is full."""
        output = self.scheduler.schedule()
        tokens = dict(output.num_scheduled_tokens)
        step = Step(tokens, {key: self._computed(key, tokens[key]) for key in tokens})
        if tokens:
            self.trace.append(step)
        sent = self.worker.step(output.kv_connector_metadata) if self.worker else set()
        self._batches.append((output, step, sent))
        if len(self._batches) >= self._depth:
            self._finish()
        return step if tokens else None

    def run(self, steps_max: int, until: Any = None) -> None:
        """Step until nothing is left or `until` says so; fail when `steps_max` do not suffice."""
        for _ in range(steps_max):
            if until is not None and until():
                return
            if not self.scheduler.has_requests() and not self._batches:
                return
            self.step()
        assert until is None, f"not reached in {steps_max} steps"

    def _computed(self, key: str, tokens: int) -> int:
        return int(self.scheduler.requests[key].num_computed_tokens) - tokens

    def _finish(self) -> None:
        output, step, sent = self._batches.popleft()
        names = list(step.tokens)
        sampled = []
        for name in names:
            done = step.computed[name] + step.tokens[name] >= self.prompts[name]
            sampled.append([7] if done else [])
            self.outputs[name] = self.outputs.get(name, 0) + done
        arrived, self._arrived = self._arrived, set()
        failed, self._failed = self._failed, set()
        news = KVConnectorOutput(finished_recving=arrived | failed, finished_sending=sent)
        if failed:
            news.failed_recving = failed
        results = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=news if arrived or failed or sent else None,
        )
        if self.after_step is not None:
            self.after_step(step)
        self.scheduler.update_from_output(output, results)

    def use_manual_clock(self, step_s: float = 0.01) -> None:
        """Let every step take `step_s`, so that nothing depends on this machine's speed.

        What the plug-in notes of its steps is kept in `noted`.
        """
        clock = ManualClock()
        settings = self.scheduler.spillway.settings
        plugin = Plugin(self.scheduler, settings, statuses_of(RequestStatus), clock=clock)
        self.scheduler.spillway = plugin
        self.after_step = lambda step: clock.advance(step_s)
        plugin.reporter.note_step = self.noted.append

    def start_streams(self, strictest_ms: int = 60) -> None:
        """Let 16 streams of 500 tokens decode, the last of them with a target of its own."""
        *others, last = STREAMS
        for name in others:
            self.add(name, 500, 2000)
        self.run(50, until=lambda: all(self.outputs.get(name, 0) for name in others))
        self.add(last, 500, 2000, order=f"r1:5:{strictest_ms}")
        self.run(50, until=lambda: self.outputs.get(last, 0) > 2)
        self.trace.clear()
        self.noted.clear()

    def decodes(self, step: Step) -> list[str]:
        """Return who only decoded in a step."""
        return [name for name in step.tokens if step.computed[name] >= self.prompts[name]]

    def kv_tokens(self, step: Step) -> int:
        """Return what the decodes of a step held before it."""
        return sum(step.computed[name] for name in self.decodes(step))

    def close(self) -> None:
        self.scheduler.shutdown()


def _config(
    folder: Path,
    step_tokens: int,
    seqs: int,
    asynchronous: bool,
    transfer: dict[str, str] | None,
    caching: bool,
    policy: str,
) -> VllmConfig:
    (folder / "config.json").write_text(json.dumps(MODEL))
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, max_model_len=32768
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=step_tokens,
            max_model_len=32768,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=asynchronous,
            policy=policy,
            disable_hybrid_kv_cache_manager=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=caching),
        parallel_config=ParallelConfig(),
        kv_transfer_config=KVTransferConfig(**transfer) if transfer else None,
    )
    config.scheduler_config.async_scheduling = asynchronous  # the CPU platform turns it off
    return config
