"""What the URL of a node may look like: where it listens, and nothing more."""

from __future__ import annotations

from urllib.parse import urlsplit


def url_fault(url: str) -> str | None:
    """Return what is wrong with a node's URL, or None."""
    wanted = "write http://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{error}; {wanted}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return wanted
    if port is None:
        return f"the port is missing; {wanted}"
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        return f"nothing may follow the port, the router adds the path; {wanted}"
    return None


def origin(url: str) -> str:
    """Return http://host:port of a URL without a fault, or https; "" of none."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}" if url else ""
