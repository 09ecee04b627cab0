"""How to reach a Kubernetes API server: by a pod's service account, or by a kubeconfig file.

Of a kubeconfig what can be read without running another program is taken; for the rest there is an
error that says what to do instead. Secrets are kept as the files that hold them where there is one,
because those are replaced while the router runs.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from spillway.core.errors import ConfigError
from spillway.wire.codec import convert

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HERE = "discovery.kubernetes"


class ApiAccess(NamedTuple):
    """Where the API server is, and by what it and the router know each other.

    server: https://HOST:PORT, perhaps with a path.  namespace: to look in, unless told otherwise.
    ca_file, ca_pem: who signs its certificate; neither: whom the system trusts.
    token, token_file: sent as bearer token; the file is read for each request, as it is replaced.
    cert_file, key_file, cert_pem, key_pem: the router's own certificate.
    """

    server: str
    namespace: str
    ca_file: str = ""
    ca_pem: str = ""
    token: str = ""
    token_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    cert_pem: str = ""
    key_pem: str = ""


class _Cluster(msgspec.Struct, frozen=True, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    exec: Any = None
    auth_provider: Any = None
    username: str = ""


class _Context(msgspec.Struct, frozen=True):
    cluster: str
    user: str = ""
    namespace: str = ""


class _NamedCluster(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _KubeConfig(msgspec.Struct, frozen=True):
    clusters: list[_NamedCluster] = []
    users: list[_NamedUser] = []
    contexts: list[_NamedContext] = []
    current_context: str = msgspec.field(default="", name="current-context")


def in_cluster(
    environ: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT
) -> ApiAccess:
    """Return the access that every pod with a service account has. Raises ConfigError."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    token, ca = folder / "token", folder / "ca.crt"
    if not (host and port and token.exists() and ca.exists()):
        raise ConfigError(
            f"{HERE}: this is no pod with a service account (KUBERNETES_SERVICE_HOST, {token}); "
            "give the pod one, or name a kubeconfig"
        )
    name = f"[{host}]" if ":" in host else host
    try:
        namespace = (folder / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = "default"
    server = f"https://{name}:{port}"
    return ApiAccess(server, namespace, ca_file=str(ca), token_file=str(token))


def from_kubeconfig(path: Path, context: str = "") -> ApiAccess:
    """Return the access that a context of a kubeconfig file gives. Raises ConfigError.

    context: "" is the file's current one.
    """
    from spillway.wire.yamlfile import read_yaml  # PyYAML comes with the router, not with wire

    content, where = read_yaml(path)
    config = convert(content, _KubeConfig, where)
    name = context or config.current_context
    contexts = {one.name: one.context for one in config.contexts}
    if name not in contexts:
        raise ConfigError(
            f"{path}: there is no context {name!r}; there are: {', '.join(sorted(contexts))}"
        )
    chosen = contexts[name]
    clusters = {one.name: one.cluster for one in config.clusters}
    users = {one.name: one.user for one in config.users}
    if chosen.cluster not in clusters or (chosen.user and chosen.user not in users):
        raise ConfigError(f"{path}: context {name!r} names a cluster or user that is not there")
    cluster, user = clusters[chosen.cluster], users.get(chosen.user, _User())
    _refuse_what_is_not_done(cluster, user, path)
    return _access(cluster, user, chosen.namespace or "default", path)


def _refuse_what_is_not_done(cluster: _Cluster, user: _User, path: Path) -> None:
    another = "use a service account's token: kubectl create token, in a file named by tokenFile"
    faults = {
        "exec": (user.exec, f"no other program is run for a token; {another}"),
        "auth-provider": (user.auth_provider, f"no provider is asked for a token; {another}"),
        "username": (user.username, f"no password is sent; {another}"),
        "insecure-skip-tls-verify": (
            cluster.insecure_skip_tls_verify,
            "the server's certificate is always checked; give certificate-authority",
        ),
        "tls-server-name": (cluster.tls_server_name, "write the server's own name in its URL"),
        "proxy-url": (cluster.proxy_url, "no proxy is used; write the server's own URL"),
    }
    for key, (value, remedy) in faults.items():
        if value:
            raise ConfigError(f"{path}: {key}: {remedy}")
    scheme = cluster.server.partition("://")[0]
    if scheme not in ("http", "https"):
        raise ConfigError(f"{path}: server: is {cluster.server!r}; write https://HOST:PORT")
    if scheme == "http" and (user.token or user.token_file):
        raise ConfigError(f"{path}: server: is {cluster.server!r}; a token goes by https alone")


def _access(cluster: _Cluster, user: _User, namespace: str, path: Path) -> ApiAccess:
    def beside(name: str) -> str:
        return str(path.parent / name) if name else ""

    return ApiAccess(
        cluster.server.rstrip("/"),
        namespace,
        beside(cluster.certificate_authority),
        _decoded(cluster.certificate_authority_data, path, "certificate-authority-data"),
        user.token,
        beside(user.token_file),
        beside(user.client_certificate),
        beside(user.client_key),
        _decoded(user.client_certificate_data, path, "client-certificate-data"),
        _decoded(user.client_key_data, path, "client-key-data"),
    )


def _decoded(data: str, path: Path, key: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise ConfigError(f"{path}: {key}: is no PEM in base64") from None
