"""A real Kubernetes API server for tests: kube-apiserver over etcd, where both are on the PATH.

There is no kubelet, so a pod's state is what a test writes into it. The router comes as a service
account with a token of its own, held to a role that may get, list and watch pods.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAMESPACE = "llm"
START_S = 90.0
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]


def binaries() -> tuple[str, str] | None:
    """Return where etcd and kube-apiserver are, or None."""
    etcd, server = shutil.which("etcd"), shutil.which("kube-apiserver")
    return (etcd, server) if etcd and server else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class RealKube:
    """One API server and its store, both processes of this test."""

    def __init__(self, folder: Path, certificate: tuple[str, str]) -> None:
        self._folder = folder
        self._cert, self._key = certificate
        self._trust = ssl.create_default_context(cafile=self._cert)
        self._etcd: asyncio.subprocess.Process | None = None
        self._server: asyncio.subprocess.Process | None = None
        self._etcd_port = free_port()
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"

    async def start(self) -> None:
        """Start both; the router's rights are there when it returns."""
        found = binaries()
        assert found is not None
        clients = f"http://127.0.0.1:{self._etcd_port}"
        peers = f"http://127.0.0.1:{free_port()}"
        self._etcd = await self._run(
            found[0],
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        )
        (self._folder / "tokens.csv").write_text("admin,admin,1,system:masters\n", encoding="utf-8")
        await self.start_server()
        await self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        of_namespace = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pod-reader"}
        subject = {"kind": "ServiceAccount", "name": "router", "namespace": NAMESPACE}
        await self.ask("POST", f"{PODS[:-4]}serviceaccounts", {"metadata": {"name": "router"}})
        await self.ask(
            "POST", f"{of_namespace}/roles", {"metadata": {"name": "pod-reader"}, "rules": RULES}
        )
        await self.ask(
            "POST",
            f"{of_namespace}/rolebindings",
            {"metadata": {"name": "pod-reader"}, "roleRef": role, "subjects": [subject]},
        )

    async def start_server(self) -> None:
        """Start the API server alone: what it had is in the store."""
        found = binaries()
        assert found is not None
        self._server = await self._run(
            found[1],
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._folder}",
            f"--tls-cert-file={self._cert}",
            f"--tls-private-key-file={self._key}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://localhost",
            f"--service-account-key-file={self._cert}",
            f"--service-account-signing-key-file={self._key}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--disable-admission-plugins=ServiceAccount",
        )
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await self.ask("GET", "/readyz")
                    return
                except (OSError, urllib.error.HTTPError):
                    assert self._server.returncode is None, "it ended; see kube-apiserver.log"
                    await asyncio.sleep(0.2)

    async def stop_server(self) -> None:
        await _end(self._server)

    async def stop(self) -> None:
        await _end(self._server)
        await _end(self._etcd)

    async def token(self) -> str:
        """Return a token of the router's service account."""
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/router/token"
        answer = await self.ask("POST", path, {"spec": {"expirationSeconds": 3600}})
        token: str = answer["status"]["token"]
        return token

    async def put(self, pod: dict[str, Any]) -> None:
        """Create a pod, with the state that a kubelet would give it."""
        meta = {key: pod["metadata"].get(key) for key in ("name", "labels", "annotations")}
        await self.ask("POST", PODS, {"metadata": meta, "spec": pod["spec"]})
        await self.set_status(meta["name"], pod["status"])

    async def set_status(self, name: str, status: dict[str, Any]) -> None:
        await self.ask("PATCH", f"{PODS}/{name}/status", {"status": status})

    async def change(self, name: str, meta: dict[str, Any]) -> None:
        await self.ask("PATCH", f"{PODS}/{name}", {"metadata": meta})

    async def delete(self, name: str) -> None:
        await self.ask("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0})

    async def ask(self, method: str, path: str, content: object = None) -> dict[str, Any]:
        """Return the answer to an administrator's request."""
        return await asyncio.to_thread(self._ask, method, path, content)

    def _ask(self, method: str, path: str, content: object) -> dict[str, Any]:
        kind = "strategic-merge-patch+json" if method == "PATCH" else "json"
        headers = {"authorization": "Bearer admin", "content-type": f"application/{kind}"}
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, context=self._trust, timeout=10) as answer:
            text = answer.read()
        found: dict[str, Any] = json.loads(text) if text.startswith(b"{") else {}
        return found

    async def _run(self, program: str, *arguments: str) -> asyncio.subprocess.Process:
        log = self._folder / f"{Path(program).name}.log"
        with log.open("ab") as file:
            return await asyncio.create_subprocess_exec(
                program, *arguments, stdout=file, stderr=file
            )


async def _end(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        process.kill()
        await process.wait()
