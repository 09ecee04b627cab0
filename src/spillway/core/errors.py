"""The error tree. Each name says whose fault it is.

SpillwayError
├── ConfigError          the operator: a flag, a configuration file, a profile
├── RequestError         the client: a body, a header
├── NodeError            an engine: refused, broke, sent nonsense
└── InvariantViolation   us: the state contradicts itself
"""


class SpillwayError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(SpillwayError):
    """The operator's input is wrong. The text names the file or flag, the key and the remedy."""


class RequestError(SpillwayError):
    """The client's request is wrong. Answered with a 4xx; nothing is forwarded."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class NodeError(SpillwayError):
    """An engine refused, broke off or answered nonsense."""


class InvariantViolation(SpillwayError):
    """The program's own state contradicts itself; going on would spread the damage."""
