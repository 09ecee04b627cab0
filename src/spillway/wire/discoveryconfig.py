"""What the configuration may say of finding nodes that it does not list."""

from __future__ import annotations

import msgspec

from spillway.wire.bounds import Positive, Text


class KubernetesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pods that are nodes, found by the Kubernetes API.

    selector: a label selector, as kubectl takes it.
    namespace: "" is that of the service account, or of the kubeconfig's context.
    role_label: the label whose value, prefill or decode, is the pod's role.
    port_name, report_port_name: container ports where the engine and a plug-in inside it listen,
        unless the pod's annotations spillway/port and spillway/report-port say so.
    kubeconfig, context: a file for a router outside the cluster, and a context of it; "" is the
        pod's own service account, and the file's current context.
    start_wait_s: for how long a router that starts waits for the first decode pod to be ready.
    """

    selector: Text
    namespace: str = ""
    role_label: Text = "spillway/role"
    port_name: Text = "http"
    report_port_name: Text = "spillway-report"
    kubeconfig: str = ""
    context: str = ""
    start_wait_s: Positive = 60.0


class DiscoveryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where nodes are found, beside those listed.

    prefill, decode: names, as HOST:PORT, each of whose addresses is a node of the role.
    interval_s: between two questions for those names.
    """

    prefill: str = ""
    decode: str = ""
    interval_s: Positive = 5.0
    kubernetes: KubernetesConfig | None = None

    def may_find(self, pool: str) -> bool:
        """Return whether nodes of a pool may come from here."""
        return self.kubernetes is not None or bool(getattr(self, pool))
