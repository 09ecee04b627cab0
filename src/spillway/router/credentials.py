"""Who may ask: the keys of clients, kept as hashes, and the bearer token of a request.

A key is a long random string, so that a plain SHA-256 of it cannot be turned round; what a person
could remember is no key. Comparisons take the same time whatever is compared.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from pathlib import Path

from spillway.core.errors import ConfigError, RequestError
from spillway.router.http_server import Request
from spillway.router.settings import RouterSettings

AUTHORIZATION = b"authorization"
BEARER = b"bearer "
CHALLENGE = b'www-authenticate: Bearer realm="spillway"\r\n'
_LINE = re.compile(r"([\w.@-]{1,64}):([0-9a-f]{64})")


def header_value(request: Request, name: bytes) -> bytes:
    """Return the value of a header that goes through to the engine; b"" without one.

    A header that comes twice has no value: which of the two an engine heeds is not known.
    """
    found = [line for line in request.lines if line[: line.index(b":")].lower() == name]
    return found[0][len(name) + 1 :].strip() if len(found) == 1 else b""


def read_token(settings: RouterSettings) -> bytes:
    """Return the token of the admin port, b"" for none. Raises ConfigError."""
    path = settings.admin_token_file
    if not path:
        return settings.admin_token.encode()
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"admin_token_file: {path} cannot be read: {error.strerror}") from None
    if not token:
        raise ConfigError(f"admin_token_file: {path} is empty; write the token into it")
    return token


def bearer_token(request: Request) -> bytes:
    """Return the bearer token of a request; b"" without one, or with two."""
    given = header_value(request, AUTHORIZATION)
    return given[len(BEARER) :].strip() if given[: len(BEARER)].lower() == BEARER else b""


def check_token(request: Request, token: bytes) -> None:
    """Raise RequestError (401) unless the request bears `token`."""
    if not hmac.compare_digest(bearer_token(request), token):
        raise RequestError("the token is missing or wrong", status=401)


class ApiKeys:
    """The clients that may use the router: a file of lines `NAME:SHA256-OF-THE-KEY-IN-HEX`.

    Blank lines and lines that begin with # do not count. The key itself goes no further than this:
    engines get the router's own key instead, if it has one.
    """

    def __init__(self, path: str, engine_api_key: str) -> None:
        self._path = Path(path)
        self._engine_line = (
            b"authorization: Bearer %b\r\n" % engine_api_key.encode() if engine_api_key else b""
        )
        self._names: dict[bytes, str] = {}
        self.read()

    def read(self) -> None:
        """Read the file again. Raises ConfigError, changing nothing."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file: {self._path} cannot be read: {error}") from None
        names: dict[bytes, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ConfigError(
                    f"{self._path}:{number}: write NAME:HASH, where HASH is the output of "
                    "printf %s KEY | sha256sum"
                )
            names[bytes.fromhex(match[2])] = match[1]
        if not names:
            raise ConfigError(f"api_keys_file: {self._path} holds no key, so nobody could ask")
        self._names = names

    def admit(self, request: Request) -> str:
        """Return the name of the request's key, and take the key off what engines will see.

        Raises RequestError (401). Looking up a hash leaks nothing useful by its time: whoever can
        choose hashes at will knows the keys.
        """
        name = self._names.get(sha256(bearer_token(request)).digest())
        if name is None:
            raise RequestError("the API key is missing or not known", status=401)
        request.lines = [
            line
            for line in request.lines
            if line[: len(AUTHORIZATION) + 1].lower() != AUTHORIZATION + b":"
        ]
        if self._engine_line:
            request.lines.append(self._engine_line)
        return name
