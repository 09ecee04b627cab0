"""TLS: towards clients by our certificate, towards engines by the authority that signed theirs."""

from __future__ import annotations

import ssl

from spillway.core.errors import ConfigError
from spillway.router.settings import RouterSettings


def server_context(settings: RouterSettings) -> ssl.SSLContext | None:
    """Return what the ports speak TLS by; None for plain HTTP. Raises ConfigError."""
    if not settings.tls_cert_file and not settings.tls_key_file:
        return None
    if not (settings.tls_cert_file and settings.tls_key_file):
        raise ConfigError("tls_cert_file and tls_key_file belong together; one is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except OSError as error:
        raise ConfigError(
            f"tls_cert_file {settings.tls_cert_file}, tls_key_file {settings.tls_key_file}: {error}"
        ) from None
    return context


def engine_context(settings: RouterSettings) -> ssl.SSLContext:
    """Return what a node with an https URL is checked by. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=settings.engine_ca_file or None)
    except OSError as error:
        raise ConfigError(f"engine_ca_file {settings.engine_ca_file}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
