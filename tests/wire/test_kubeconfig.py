"""A pod's service account and kubeconfig files: what they give, and what is refused with why."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from spillway.core.errors import ConfigError
from spillway.wire.kubeconfig import ApiAccess, from_kubeconfig, in_cluster

ENVIRON = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def account(folder: Path) -> Path:
    for name, text in (("token", "t0"), ("ca.crt", "pem"), ("namespace", "llm\n")):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "config"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "llm"}},
            {"name": "there", "context": {"cluster": "c"}},
            {"name": "nowhere", "context": {"cluster": "gone"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://api.test:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_pod_has_its_service_account(tmp_path: Path) -> None:
    folder = account(tmp_path)
    assert in_cluster(ENVIRON, folder) == ApiAccess(
        "https://10.96.0.1:443",
        "llm",
        ca_file=str(folder / "ca.crt"),
        token_file=str(folder / "token"),
    )
    ipv6 = ENVIRON | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert in_cluster(ipv6, folder).server == "https://[fd00::1]:443"
    (folder / "namespace").unlink()
    assert in_cluster(ENVIRON, folder).namespace == "default"


@pytest.mark.parametrize("missing", ["token", "ca.crt", "environ"])
def test_without_one_the_remedy_is_named(tmp_path: Path, missing: str) -> None:
    folder = account(tmp_path)
    environ = {} if missing == "environ" else ENVIRON
    if missing != "environ":
        (folder / missing).unlink()
    with pytest.raises(ConfigError, match="or name a kubeconfig"):
        in_cluster(environ, folder)


def test_a_kubeconfig_gives_its_current_context(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"tokenFile": "token"}, **{"certificate-authority": "ca.pem"})
    access = from_kubeconfig(path)
    assert access == ApiAccess(
        "https://api.test:6443",
        "llm",
        ca_file=str(tmp_path / "ca.pem"),
        token_file=str(tmp_path / "token"),
    )
    there = from_kubeconfig(path, "there")
    assert (there.namespace, there.token_file) == ("default", "")


def test_certificates_may_stand_in_the_file(tmp_path: Path) -> None:
    user = {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")}
    path = kubeconfig(tmp_path, user, **{"certificate-authority-data": encoded("CA")})
    access = from_kubeconfig(path)
    assert (access.ca_pem, access.cert_pem, access.key_pem) == ("CA", "CERT", "KEY")


@pytest.mark.parametrize(
    ("user", "cluster", "said"),
    [
        ({"exec": {"command": "aws"}}, {}, "exec: no other program .* kubectl create token"),
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider: .* kubectl create token"),
        ({"username": "me", "password": "x"}, {}, "username: no password is sent"),
        ({}, {"insecure-skip-tls-verify": True}, "give certificate-authority"),
        ({}, {"proxy-url": "http://proxy"}, "proxy-url: no proxy is used"),
        ({}, {"tls-server-name": "other"}, "tls-server-name"),
        ({"token": "t"}, {"server": "http://api.test:80"}, "a token goes by https alone"),
        ({}, {"server": "api.test:80"}, "write https://HOST:PORT"),
        ({}, {"certificate-authority-data": "%%"}, "certificate-authority-data: is no PEM"),
        ({}, {"server": 7}, "expected text"),
    ],
)
def test_what_is_not_done_is_refused(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        from_kubeconfig(kubeconfig(tmp_path, user, **cluster))


def test_contexts_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {})
    with pytest.raises(ConfigError, match="no context 'x'; there are: here, nowhere, there"):
        from_kubeconfig(path, "x")
    with pytest.raises(ConfigError, match="cluster or user that is not there"):
        from_kubeconfig(path, "nowhere")
    with pytest.raises(ConfigError, match="missing"):
        from_kubeconfig(tmp_path / "missing")
