"""Every limit of the router, with its default and the reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite

from spillway.core.errors import ConfigError, RequestError
from spillway.core.types import Slo

KIB, MIB = 1024, 1024 * 1024
MAY_BE_ZERO = ("port", "admin_port", "inflight_max", "kv_block_tokens", "prefix_blocks_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Limits and intervals of one router process. Raises ConfigError unless each is positive.

    Towards clients:
    host, port: where to listen; port 0 takes a free one.
    admin_host, admin_port: where metrics, the dashboard and the administration are served; -1: the
        first two on the port for clients, the last nowhere.
    admin_token, admin_token_file: what a caller of the admin port must send as bearer token, here
        or in a file; "" lets everybody read and nobody change anything.
    tls_cert_file, tls_key_file: PEM files; with them both ports speak TLS and nothing else.
    api_keys_file: lines NAME:SHA256 of the keys that clients must send; "" passes on whatever they
        send and leaves it to the engines.
    requests_max: concurrent requests; a further one gets 429.
    connections_max: open client connections; a further one is closed at once.
    body_bytes_max, head_bytes_max: of one request; beyond are 413 and 431.
    request_complete_s: from a request's first byte to its last (slow clients); beyond is 408.
    client_idle_s: keep-alive connections without a request are closed after this.
    client_stall_s: a client that reads nothing for so long is dropped.
    retry_after_s: what a 429 or 503 tells the client.
    prefix_blocks_max: leading blocks of 1 KiB of each prompt that are remembered, to know which
        node holds its beginning; 0 remembers none. For engines with prefix caching.
    inflight_max: requests that run at a time; further ones wait in the queue of their class, of
        which priority, length and time are the class's own. 0 is no limit and no queue.
    output_tokens_default: assumed limit of a chat request that declares none.
    patience_s: from a request's arrival to the first byte of its answer, retries included; beyond
        is 504. A client's x-request-timeout-ms may shorten it. The clients of OpenAI wait 600 s.

    Towards engines:
    upstream_idle_s: engines close idle connections after 5 s, so ours are used for less.
    upstream_idle_conns_max: idle connections kept per node.
    connect_s: give up on connecting after this.
    prefill_s: give up on a prefill leg after this.
    first_byte_s: give up on an answer that has not begun after this; one that is not streamed
        begins when it is complete.
    kv_lease_s: for how long a prefill node keeps KV that nobody fetches, at least; KV is used only
        in the first half of it, because KV that was freed is read without an error.
    kv_block_tokens: the engines' KV block size, to check a handover by; 0 is not known.
    stream_silence_s: give up on an answer that stops coming after this.
    answer_bytes_max: of a prefill leg's answer, which is held in memory.
    health_interval_s, health_timeout_s, health_failures_max: `GET /health` of each node.
    models_interval_s: how often the model list is read again.
    report_retry_first_s, report_retry_max_s: backoff of a broken report stream.
    report_silence_s: a report stream without a line for so long is opened again.
    report_absent_retry_s: a node without reports (404) is asked again after this.
    report_line_bytes_max: a longer line is no report.
    breaker_failures, breaker_failed_frac, breaker_window_s: a node with so many failed legs in so
        long, and at least this share of its legs, is taken out,
    breaker_open_s, breaker_open_max_s: at first for so long, and longer with each relapse.
    engine_api_key: sent as bearer token with the router's own questions, and in place of a client's
        key where `api_keys_file` is set; "" for none.
    engine_ca_file: PEM file of the authority that signs the engines' certificates, for nodes with
        an https URL; "" trusts what the system does.

    Of its own:
    workers: processes that listen on the port, each a router with limits of its own; with more
        than one, operators are served on the admin port alone, on a free one if none is set.
    sweep_s: how often timeouts are looked at.
    decisions_kept: decisions that /debug/decisions can show.
    decision_log_path: JSON lines with every decision and the view it was made on; "" for none.
    log_path: JSON lines with every request that ended and every change of a node; "-" is stderr,
        "" is none.
    strain_gaps_min, strain_late_frac: a node that does not report takes no deflected prompts for a
        while, when of so many gaps of its streams that share is late.
    strain_rest_s, strain_rest_max_s: for how long; doubled with each relapse, up to that.
    gap_sample_every: of so many streams one has its token gaps measured; 1 is all of them.
    decision_log_lines_max: lines waiting to be written; further ones are dropped and counted.
    config_watch_s: how often the configuration file is looked at for a change.
    drain_s: how long `close` lets running requests finish.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = -1
    admin_token: str = ""
    admin_token_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    api_keys_file: str = ""
    requests_max: int = 4096
    connections_max: int = 16384
    body_bytes_max: int = 32 * MIB
    head_bytes_max: int = 32 * KIB
    request_complete_s: float = 30.0
    client_idle_s: float = 75.0
    client_stall_s: float = 120.0
    retry_after_s: int = 1
    inflight_max: int = 0
    output_tokens_default: int = 1024
    prefix_blocks_max: int = 0
    patience_s: float = 600.0
    upstream_idle_s: float = 4.0
    upstream_idle_conns_max: int = 512
    connect_s: float = 3.0
    prefill_s: float = 120.0
    first_byte_s: float = 600.0
    kv_lease_s: float = 30.0
    kv_block_tokens: int = 0
    stream_silence_s: float = 60.0
    answer_bytes_max: int = 16 * MIB
    health_interval_s: float = 1.0
    health_timeout_s: float = 2.0
    health_failures_max: int = 3
    models_interval_s: float = 10.0
    report_retry_first_s: float = 0.1
    report_retry_max_s: float = 5.0
    report_silence_s: float = 3.0
    report_absent_retry_s: float = 30.0
    report_line_bytes_max: int = 64 * KIB
    breaker_failures: int = 5
    breaker_failed_frac: float = 0.5
    breaker_window_s: float = 10.0
    breaker_open_s: float = 2.0
    breaker_open_max_s: float = 60.0
    engine_api_key: str = ""
    engine_ca_file: str = ""
    workers: int = 1
    sweep_s: float = 1.0
    decisions_kept: int = 1000
    decision_log_path: str = ""
    log_path: str = ""
    gap_sample_every: int = 16
    strain_gaps_min: int = 20
    strain_late_frac: float = 0.05
    strain_rest_s: float = 5.0
    strain_rest_max_s: float = 60.0
    decision_log_lines_max: int = 10_000
    config_watch_s: float = 2.0
    drain_s: float = 5.0

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("admin_port", max(0, self.admin_port))):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{name} is {port}; it must lie between 0 and 65535")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in MAY_BE_ZERO or isinstance(value, str):
                continue
            if not (isfinite(value) and value > 0):
                raise ConfigError(f"{field.name} is {value}; it must be positive and finite")


@dataclass(frozen=True, slots=True)
class Classes:
    """The service classes of the configuration and the targets each one sets.

    Raises ConfigError when `default` is not among them or a target is not positive.
    """

    targets: Mapping[str, Slo]
    default: str = "default"

    def __post_init__(self) -> None:
        if self.default not in self.targets:
            raise ConfigError(f"class {self.default!r} is the default but not configured")
        for name, slo in self.targets.items():
            if not all(isfinite(target_s) and target_s > 0 for target_s in slo):
                raise ConfigError(f"class {name!r}: targets must be positive, finite seconds")

    def resolve(
        self, class_name: bytes | None, ttft_ms: bytes | None, tbt_ms: bytes | None
    ) -> tuple[str, Slo]:
        """Return the class of a request and its targets, from the values of its headers.

        A class sets both targets; an explicit header overrides its own.
        Raises RequestError (400) naming the header and what it may hold.
        """
        name = self.default if class_name is None else class_name.decode("latin-1")
        slo = self.targets.get(name)
        if slo is None:
            known = ", ".join(sorted(self.targets))
            raise RequestError(
                f"x-slo-class is {name[:64]!r}; known classes are: {known}", param="x-slo-class"
            )
        if ttft_ms is None and tbt_ms is None:
            return name, slo
        return name, Slo(
            slo.ttft_s if ttft_ms is None else _target_s("x-slo-ttft-ms", ttft_ms),
            slo.tbt_s if tbt_ms is None else _target_s("x-slo-tbt-ms", tbt_ms),
        )


def _target_s(header: str, value: bytes) -> float:
    try:
        target_s = float(value) / 1000.0
    except ValueError:
        target_s = 0.0
    if not (isfinite(target_s) and target_s > 0):
        shown = value[:64].decode("latin-1")
        raise RequestError(
            f"{header} is {shown!r}; it must be a positive number of milliseconds", param=header
        )
    return target_s
