"""What a client is told of a failure. Never a node's name or address, nor an engine's own words."""

from __future__ import annotations

_TEXTS = {
    502: "an engine failed while it worked on this request; it is safe to try again",
    503: "no engine can take this request now; try again later",
    504: "no answer began within the time that this request allows; it is safe to try again",
}


def error_text(status: int) -> str:
    """Return the sentence that goes with a status that the router gives by itself."""
    return _TEXTS.get(status, "the request could not be served")
