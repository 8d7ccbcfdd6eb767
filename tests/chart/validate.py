"""Validates rendered manifests: validate.py MANIFESTS KUBERNETES-VERSION CUSTOM

Kubernetes' own kinds against its schemas, strictly; InferencePool against the fields of its v1; other custom resources are written to the
file CUSTOM, as JSON, for a validator that has their schemas.
"""

import json
import sys

import kubernetes_validate
import yaml

OWN = {"Deployment", "Service", "PersistentVolumeClaim", "PodDisruptionBudget", "NetworkPolicy"}
CUSTOM = {"PodMonitor", "ScaledObject"}


def inference_pool(pool):
    """Gateway API Inference Extension, inference.networking.k8s.io/v1."""
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1", pool
    spec = pool["spec"]
    assert set(spec) <= {"selector", "targetPorts", "appProtocol", "endpointPickerRef"}, spec
    assert set(spec["selector"]) == {"matchLabels"} and spec["selector"]["matchLabels"], spec
    assert 1 <= len(spec["targetPorts"]) <= 8 and all(set(port) == {"number"} for port in spec["targetPorts"]), spec
    picker = spec["endpointPickerRef"]
    assert {"name", "port"} <= set(picker) <= {"group", "kind", "name", "port", "failureMode"}, picker
    assert set(picker["port"]) == {"number"} and picker["failureMode"] in {"FailOpen", "FailClose"}, picker


def consistent(kinds):
    """What one manifest says of another."""
    pod = kinds["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert kinds["Service"]["spec"]["selector"].items() <= labels
    for kind, selector in [
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
        ("InferencePool", "selector"),
    ]:
        if kind in kinds:
            assert kinds[kind]["spec"][selector]["matchLabels"].items() <= labels, kind
    container = pod["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] in ports
    variables = [variable["name"] for variable in container["env"]]
    assert len(set(variables)) == len(variables), variables
    # Zero seconds are valid since Kubernetes 1.33 only.
    assert "lifecycle" not in container or container["lifecycle"]["preStop"]["sleep"]["seconds"] > 0
    # Operators' port speaks plain HTTP; without it, all is said in what clients speak.
    tls = "FRUGAL_TLS__CERTIFICATE" in variables
    port, scheme = ("admin", None) if "admin" in ports else ("http", "HTTPS" if tls else None)
    assert kinds["Service"]["spec"]["ports"][0]["appProtocol"] == ("https" if tls else "http")
    if "NetworkPolicy" in kinds:
        rules = {rule["ports"][0]["port"]: rule for rule in kinds["NetworkPolicy"]["spec"]["ingress"]}
        assert set(rules) == set(ports)
        # Who comes through a load balancer is from nowhere in the cluster.
        assert ("from" in rules["http"]) == (kinds["Service"]["spec"]["type"] == "ClusterIP")
    if "PodMonitor" in kinds:
        (endpoint,) = kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint.get("scheme")) == (port, scheme and scheme.lower()), endpoint
    asked = {"port": port} | ({"scheme": scheme} if scheme else {})
    for probe, path in [("startupProbe", "/readyz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
        assert container[probe]["httpGet"] == {"path": path} | asked, probe
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [c["metadata"]["name"] for c in [kinds.get("PersistentVolumeClaim")] if c]
    if "InferencePool" in kinds:
        assert kinds["InferencePool"]["spec"]["targetPorts"] == [{"number": ports["http"]}]
    if "ScaledObject" in kinds:
        scaled = kinds["ScaledObject"]["spec"]
        assert scaled["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
        assert scaled["minReplicaCount"] >= 1
        # Otherwise requests would wait before there is another replica.
        settings = {variable["name"]: variable.get("value") for variable in container["env"]}
        (trigger,) = scaled["triggers"]
        assert int(trigger["metadata"]["threshold"]) < int(settings["FRUGAL_SCHEDULER__MAX_SEQS"])
        # Two who set the number of replicas would fight.
        assert "replicas" not in kinds["Deployment"]["spec"]


def main():
    path, version, custom = sys.argv[1:]
    with open(path) as file:
        manifests = [manifest for manifest in yaml.safe_load_all(file) if manifest]
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    assert len(kinds) == len(manifests), "two of a kind"
    for kind, manifest in kinds.items():
        assert manifest["metadata"]["namespace"] == "serving", kind
        if kind in OWN:
            kubernetes_validate.validate(manifest, version, strict=True)
        elif kind == "InferencePool":
            inference_pool(manifest)
        else:
            assert kind in CUSTOM, kind
    consistent(kinds)
    with open(custom, "w") as file:
        json.dump([manifest for kind, manifest in kinds.items() if kind in CUSTOM], file)
    print(version, *sorted(kinds))


main()
