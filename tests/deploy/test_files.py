"""The files for deployment say what the router understands.

Where helm or systemd-analyze is on the PATH they judge as well; a small stand-in for helm's
template language renders the chart everywhere, since the chart uses little of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from spillway.router.settings import RouterSettings
from spillway.wire.config import ClusterConfig, load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "spillway"
IF = re.compile(r"\n? *\{\{- if \.Values\.([\w.]+) \}\}(\n.*?)\n *\{\{- end \}\}", re.DOTALL)
TO_YAML = re.compile(r"\{\{ toYaml \.Values\.([\w.]+) \| indent (\d+) \}\}")
VALUE = re.compile(r"\{\{ \.(Values|Release)\.([\w.]+)(?: \| default \.Release\.\w+)? \}\}")


OFF = {"enabled": False}


def lookup(values: dict[str, Any], path: str) -> Any:
    found: Any = values
    for step in path.split("."):
        found = found[step]
    return found


def rendered(template: str, values: dict[str, Any]) -> str:
    def indented(match: re.Match[str]) -> str:
        text = yaml.safe_dump(lookup(values, match[1]), sort_keys=False).rstrip()
        return "\n".join(" " * int(match[2]) + line for line in text.splitlines())

    def value(match: re.Match[str]) -> str:
        found = "" if match[1] == "Release" else str(lookup(values, match[2]))
        return found or "relay"

    text = IF.sub(lambda match: match[2] if lookup(values, match[1]) else "", template)
    text = VALUE.sub(value, TO_YAML.sub(indented, text))
    assert "{{" not in text, "more of the template language than this test renders"
    return text


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay values over values as helm does: mappings are joined, all else is replaced."""
    joined = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        joined[key] = merged(base[key], value) if both else value
    return joined


def values_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def chart(given: str = "nodes", **changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Render the chart, in namespace `relay`, by one of its ci/ value files and changes to that."""
    values = merged(values_of(CHART / "values.yaml"), values_of(CHART / f"ci/{given}-values.yaml"))
    found = {}
    for path in sorted((CHART / "templates").iterdir()):
        text = rendered(path.read_text(encoding="utf-8"), merged(values, changes))
        for one in yaml.safe_load_all(text):
            if one:
                found[one["kind"], one["metadata"]["name"]] = one
    return found


def test_the_chart_gives_the_router_a_configuration_it_takes(tmp_path: Path) -> None:
    objects = chart()
    path = tmp_path / "cluster.yaml"
    path.write_text(objects["ConfigMap", "relay"]["data"]["cluster.yaml"], encoding="utf-8")
    config = load_config(path)
    settings = RouterSettings(**config.router.given())
    assert (settings.port, settings.admin_port, settings.drain_s) == (8000, 9000, 120)
    assert settings.api_keys_file == "/etc/spillway-secret/api-keys"


def test_ports_probes_and_labels_fit_together() -> None:
    objects = chart()
    pod = objects["Deployment", "relay"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "admin": 9000}
    for name in ("relay", "relay-admin"):
        service = objects["Service", name]["spec"]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert service["ports"][0]["targetPort"] in ports
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    monitor = objects["ServiceMonitor", "relay"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= (
        objects["Service", "relay-admin"]["metadata"]["labels"].items()
    )
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["graceSeconds"] > values["drainSeconds"]


def test_the_chart_lets_the_router_read_pods_and_no_more() -> None:
    objects = chart(podReader={"enabled": True, "namespace": "llm"})
    role = objects["Role", "relay-pod-reader"]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    binding = objects["RoleBinding", "relay-pod-reader"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "llm"
    [subject] = binding["subjects"]
    assert (subject["kind"], subject["name"]) in objects
    pod = objects["Deployment", "relay"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == subject["name"]
    assert pod["automountServiceAccountToken"] is True


def test_the_chart_takes_pods_for_nodes(tmp_path: Path) -> None:
    objects = chart("pods")
    path = tmp_path / "cluster.yaml"
    path.write_text(objects["ConfigMap", "relay"]["data"]["cluster.yaml"], encoding="utf-8")
    config = load_config(path)
    assert not config.nodes.prefill
    assert not config.nodes.decode
    kubernetes = config.discovery.kubernetes
    assert kubernetes is not None
    [container] = objects["Deployment", "relay"]["spec"]["template"]["spec"]["containers"]
    assert container["startupProbe"]["failureThreshold"] > kubernetes.start_wait_s


def test_what_is_switched_off_is_not_there() -> None:
    kinds = {kind for kind, _ in chart(podDisruptionBudget=OFF, serviceMonitor=OFF)}
    assert kinds == {"ConfigMap", "Deployment", "Service"}
    pod = chart()["Deployment", "relay"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False


def test_every_value_is_used() -> None:
    templates = "".join(p.read_text(encoding="utf-8") for p in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert {key for key in values if f".Values.{key}" not in templates} == set()


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_helm_agrees() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("no helm here")
    where = ["relay", str(CHART), "--namespace", "relay"]
    for given in ("nodes", "pods"):
        values = ["--values", str(CHART / f"ci/{given}-values.yaml")]
        run([helm, "lint", "--strict", str(CHART), *values])
        shown = run([helm, "template", *where, *values])
        made = {
            (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(shown) if one
        }
        for objects in (made, expected := chart(given)):
            for key, one in objects.items():
                if key[0] == "ConfigMap":
                    one["data"] = {name: yaml.safe_load(of) for name, of in one["data"].items()}
        assert made == expected
    refused = subprocess.run([helm, "template", *where], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert "missing property 'nodes'" in refused.stderr or "nodes is required" in refused.stderr


@pytest.mark.slow
def test_systemd_finds_no_fault_in_the_unit() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    unit = str(DEPLOY / "systemd" / "spillway.service")
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, timeout=60)
    faults = [
        line
        for line in done.stderr.splitlines()
        if "spillway.service" in line and "is not executable" not in line
    ]
    assert faults == []


def test_the_container_runs_without_privileges() -> None:
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    assert "USER 10001" in lines
    assert lines.index("USER 10001") < next(i for i, x in enumerate(lines) if x.startswith("ENTRY"))


def test_the_schema_knows_every_key_of_the_example() -> None:
    schema = msgspec.json.decode((DEPLOY / "config.schema.json").read_bytes())
    example = DEPLOY.parent / "examples" / "cluster.yaml"
    keys = schema["$defs"][ClusterConfig.__name__]["properties"]
    assert set(yaml.safe_load(example.read_text(encoding="utf-8"))) <= set(keys)
