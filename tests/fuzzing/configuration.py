"""The configuration: what an operator writes, and what happens to files on their way."""

from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.memory import Fault
from fuzzing.mutate import mutated
from spillway.core.errors import ConfigError
from spillway.core.policies import build_policy
from spillway.router.settings import Classes, RouterSettings
from spillway.wire import codec
from spillway.wire.config import ClusterConfig, load_config

TYPE_INFO = cache(codec.inspect.type_info)
NODES = {"prefill": [{"url": "http://a:1"}], "decode": [{"url": "http://b:2", "name": "d"}]}
SECTIONS: dict[str, Any] = {
    "router": {"port": 8000, "host": "127.0.0.1", "drain_s": 5.0, "patience_s": 60},
    "defaults": {"profile": "llama-3.1-8b-a100", "chunk_mode": "static", "tbt_margin_frac": 0.9},
    "policy": {"name": "headroom", "options": {}},
    "classes": {"default": {"ttft_s": 1.0, "tbt_s": 0.06}, "batch": {"ttft_s": 30, "priority": 1}},
    "limits": {"report_age_max_s": 1.0, "retries_max": 2},
    "discovery": {"decode": "vllm:8000", "interval_s": 5},
}
KEYS = (
    *(
        "host",
        "port",
        "url",
        "name",
        "profile",
        "chunk_tokens_max",
        "kv_capacity_tokens",
        "options",
    ),
    *(
        "prefill",
        "decode",
        "ttft_s",
        "tbt_s",
        "priority",
        "queue_max",
        "retries_max",
        "policy",
        "x",
    ),
    *("admin_port", "admin_token", "requests_max", "seqs_max", "report_url", "<<", "", "default"),
)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 65536, 2**63, 10**40, 0.0, -0.5, 1e308, float("inf"), float("nan"), None, True),
    *(
        "",
        "x",
        "http://",
        "http://a:1",
        "http://[::1]:80",
        "http://[",
        "https://a:b@c:1/p?q",
        "a:99999",
    ),
    *([], {}, [1], {"a": 1}, [{"url": "http://c:3"}], "é\u0000", "a" * 500, "headroom", "none"),
)
WORDS = (
    *(
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system ",
        b"!!binary ",
        b"!!set ",
        b"? ",
        b"- ",
        b": ",
    ),
    *(
        b"\t",
        b"\n",
        b"---\n",
        b"...\n",
        b"%YAML 9.9\n",
        b"|\n",
        b"# ",
        b"'",
        b'"',
        b"{",
        b"[",
        b"\xff",
    ),
    *(
        b"2001-01-01",
        b"0o17",
        b"1_0",
        b".inf",
        b"~",
        b"0x1F",
        b"1:30",
        b"<<: *a",
        b"\xc2\x85",
        b"\x00",
    ),
)
SAMPLE = b"""\
router: {port: 8000}
nodes:
  prefill: [{url: "http://a:1"}]
  decode:
    - url: http://b:2   # the second
      name: d
"""


class ConfigurationSurface:
    """One file per input: read, checked and built into everything but sockets."""

    name = "configuration"

    def __init__(self, seed: int) -> None:
        folder = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else None)
        self._path = Path(self._folder.name) / "cluster.yaml"

        # Types do not change, and explaining an error looks at all of them.
        codec.inspect.type_info = TYPE_INFO

    def __enter__(self) -> ConfigurationSurface:
        return self

    def __exit__(self, *_) -> None:
        self._folder.cleanup()
        codec.inspect.type_info = TYPE_INFO.__wrapped__

    def one(self, draw: Random) -> list[str]:
        self._path.write_bytes(self._text(draw))
        try:
            build(load_config(self._path))
        except ConfigError as error:
            said = str(error)
            if not said or "\n" in said:
                raise Fault(f"not one line: {said!r}") from error
            return ["refused"]
        return ["taken"]

    def _text(self, draw: Random) -> bytes:
        kind = draw.random()
        if kind < 0.15:
            return mutated(draw, SAMPLE, [SAMPLE, *WORDS])
        content: dict[str, Any] = {"nodes": deepcopy(NODES)}
        for name in draw.sample(sorted(SECTIONS), draw.choice((0, 0, 1))):
            content[name] = deepcopy(SECTIONS[name])
        for _ in range(draw.choice((0, 1, 1, 2, 4))):
            spoil(draw, content)
        text = json.dumps(content, ensure_ascii=draw.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
        if kind < 0.4:
            at = draw.randrange(len(text) + 1)
            return text[:at] + draw.choice(WORDS) + text[at + draw.randrange(2) :]
        return text


def spoil(draw: Random, content: dict[str, Any]) -> None:
    """Change, add or remove one key somewhere in the tree."""
    at: Any = content
    while isinstance(at, dict | list) and at:
        steps = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw.choice(steps)
        if isinstance(at[key], dict | list) and at[key] and draw.random() < 0.8:
            at = at[key]
            continue
        if draw.random() < 0.2:
            del at[key]
        elif draw.random() < 0.3 and isinstance(at, dict):
            at[draw.choice(KEYS)] = deepcopy(draw.choice(VALUES))
        else:
            at[key] = deepcopy(draw.choice(VALUES))
        return


def build(config: ClusterConfig) -> None:
    """Make of a configuration whatever a router makes of it before it listens."""
    config.build_nodes()
    config.limits.build()
    build_policy(config.policy.name, config.policy.options)
    Classes(config.slos())
    RouterSettings(**config.router.given())
