"""What is read of single messages: bodies, handovers, orders, engines' pages."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzzing.client import RECORDED
from fuzzing.mutate import mutated
from fuzzing.rig import KV_PARAMS, PREFILLED
from fuzzing.upstream import PAGES
from spillway.core.errors import NodeError, RequestError
from spillway.wire import enginepages, kvparams, openai, order, report

SAMPLES: tuple[tuple[str, bytes], ...] = (
    ("completion", b'{"model":"m","prompt":[1,2],"max_tokens":5,"n":1,"vllm_xargs":{"a":1}}'),
    ("completion", b'{"model":"m","prompt":"a\\u00e9","stream":true,"best_of":1,"x":[{"y":[]}]}'),
    ("chat", b'{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{}]}'),
    ("prefill_answer", PREFILLED),
    ("handover", KV_PARAMS),
    ("handover", KV_PARAMS.replace(b"[[1,2]]", b"[1,2,3]")),
    ("models", PAGES[0].partition(b"\r\n\r\n")[2]),
    ("version", PAGES[1].partition(b"\r\n\r\n")[2]),
    ("server_info", PAGES[2].partition(b"\r\n\r\n")[2]),
    ("metrics", b'vllm:cache_config_info{block_size="16",num_gpu_blocks="99"} 1\nvllm:nixl_x 1\n'),
    ("order", b"router:123:60.5"),
    ("report", b'{"node_id":"d","role":"decode","seq":1,"step":1,"backlog_prompts":0}'),
    ("usage", b'data: {"usage":{"prompt_tokens": 7,"completion_tokens":12}}\n\ndata: [DONE]'),
)
CORPUS = [*(data for _, data in SAMPLES), *RECORDED]


def whole_body(data: bytes, *, is_chat: bool) -> None:
    """Read a body, and write what is sent of it to either leg."""
    fields = openai.parse_body(data, is_chat=is_chat).fields
    openai.prefill_body(openai.ordered_fields(fields, "r:1:"))
    openai.with_order(openai.decode_body(data, KV_PARAMS), fields, "r:1:")


READERS: dict[str, Callable[[bytes], object]] = {
    "completion": lambda data: whole_body(data, is_chat=False),
    "chat": lambda data: whole_body(data, is_chat=True),
    "prefill_answer": openai.read_prefill_answer,
    "handover": lambda data: kvparams.check_handover(data, 20, 16),
    "models": lambda data: openai.models_body(openai.read_models(data)),
    "version": enginepages.read_version,
    "server_info": lambda data: enginepages.read_server_info(data).scheduler_config.has_plugin,
    "metrics": lambda data: enginepages.read_metrics(data.decode(errors="replace")),
    "order": lambda data: order.decode_order(data.decode("latin-1")),
    "report": report.decode,
    "usage": lambda data: openai.usage_count(data, openai.COMPLETION_TOKENS),
}


class DecoderSurface:
    """One message per input, to the reader of its kind."""

    name = "decoders"

    def __init__(self, seed: int) -> None:
        del seed  # nothing is kept from input to input

    def __enter__(self) -> DecoderSurface:
        return self

    def __exit__(self, *_) -> None:
        pass

    def one(self, draw: Random) -> list[str]:
        kind, data = draw.choice(SAMPLES)
        try:
            READERS[kind](mutated(draw, data, CORPUS))
        except (RequestError, NodeError):
            return ["refused"]
        return ["taken"]
