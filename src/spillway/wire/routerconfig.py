"""What the configuration may say of the router itself: where it listens, and its limits."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec.structs import asdict

from spillway.wire.bounds import AtLeastOne, Count, Port, Positive, Share, Text


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may change of the router itself; None keeps its own default.

    The names are those of `router.settings.RouterSettings`, which says what each one means.
    """

    host: Text | None = None
    port: Port | None = None
    admin_host: Text | None = None
    admin_port: Port | None = None
    admin_token: str | None = None
    admin_token_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    api_keys_file: str | None = None
    requests_max: AtLeastOne | None = None
    connections_max: AtLeastOne | None = None
    body_bytes_max: AtLeastOne | None = None
    client_idle_s: Positive | None = None
    inflight_max: Count | None = None
    output_tokens_default: AtLeastOne | None = None
    prefix_blocks_max: Count | None = None
    patience_s: Positive | None = None
    upstream_idle_s: Positive | None = None
    connect_s: Positive | None = None
    first_byte_s: Positive | None = None
    kv_lease_s: Positive | None = None
    kv_block_tokens: Count | None = None
    stream_silence_s: Positive | None = None
    health_interval_s: Positive | None = None
    health_failures_max: AtLeastOne | None = None
    breaker_failures: AtLeastOne | None = None
    breaker_failed_frac: Share | None = None
    breaker_window_s: Positive | None = None
    breaker_open_s: Positive | None = None
    breaker_open_max_s: Positive | None = None
    engine_api_key: str | None = None
    engine_ca_file: str | None = None
    decision_log_path: str | None = None
    log_path: str | None = None
    gap_sample_every: AtLeastOne | None = None
    config_watch_s: Positive | None = None
    drain_s: Positive | None = None
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that were given: `RouterSettings(**config.router.given())`."""
        return {name: value for name, value in asdict(self).items() if value is not None}
