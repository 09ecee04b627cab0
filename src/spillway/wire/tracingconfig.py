"""What the configuration may say of traces: where spans go, and of how many requests."""

from __future__ import annotations

import msgspec

from spillway.wire.bounds import AtLeastOne, Positive, ShareOrNone, Text


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces by OpenTelemetry.

    endpoint: where spans are posted by OTLP over HTTP, its path included.
    sample_frac: the share of traces begun here that is kept; a client's own choice goes before it.
    service_name: what the spans say they are of.
    queue_max: requests whose spans wait to be sent; further ones are dropped and counted.
    timeout_s: for how long one batch may take, further tries included.
    """

    endpoint: Text = "http://127.0.0.1:4318/v1/traces"
    sample_frac: ShareOrNone = 0.1
    service_name: Text = "spillway"
    queue_max: AtLeastOne = 2048
    timeout_s: Positive = 5.0
