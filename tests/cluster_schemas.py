"""What may stand in the files of `cluster/`: every key, so that a misspelt one is refused."""

from __future__ import annotations

import functools
import json
import re
import shlex
import warnings
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import ray.scripts.scripts
import yaml
from botocore.validate import ParamValidator

from flops_fit_ray.cli._run_commands import run

with warnings.catch_warnings(action="ignore", category=ImportWarning):  # a package that only better words would need
    from google.cloud.compute_v1.types import AttachedDisk, Instance, Scheduling

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
ANYTHING: Schema = {}


def _object(required: str = "", /, **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def _options_of_ray_start() -> Schema:
    options: Schema = {name.removeprefix("--"): TEXT for p in ray.scripts.scripts.start.params for name in p.opts}
    return _object(**options)


# The fields of KubeRay's CRDs (v1) that are of use here; pods are left to the API of Kubernetes
_METADATA = _object("name", name=TEXT, labels={"type": "object"})
_HEAD = _object(
    "rayStartParams template",
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=_options_of_ray_start(),
    template=ANYTHING,
)
_WORKERS = _object(
    "groupName rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=_options_of_ray_start(),
    template=ANYTHING,
)
_CLUSTER_SPEC = _object(
    "rayVersion authOptions headGroupSpec",
    rayVersion=TEXT,
    authOptions=_object("mode", mode={"const": "token"}),
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=_object(idleTimeoutSeconds=COUNT),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB_SPEC = _object(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=YES_NO,
    ttlSecondsAfterFinished=COUNT,
    runtimeEnvYAML=TEXT,
    rayClusterSpec=_CLUSTER_SPEC,
)
_RUNTIME_ENVIRONMENT = _object(env_vars={"type": "object", "propertyNames": {"enum": ["RAY_JOB_STOP_WAIT_TIME_S"]}})
_KUBERAY = {"RayJob": _JOB_SPEC, "RayCluster": _CLUSTER_SPEC}


def check_yaml(text: str) -> None:
    """Refuse what does not belong into a file of `cluster/`.

    Raises:
        Exception: of whichever validator refuses it.
    """
    for document in yaml.safe_load_all(text):
        if "kind" in document:
            _check_kubernetes(document)
        else:
            _check_launcher(document)
    check_commands(text)


def _check_kubernetes(document: dict[str, Any]) -> None:
    _check_amounts(document)
    spec = _KUBERAY.get(document["kind"])
    if spec is None:
        kubernetes_validate.validate(document, "1.36", strict=True)
        return
    whole = _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind=TEXT,
        metadata=_METADATA,
        spec=spec,
    )
    _validate(document, whole)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.36", strict=True)
    if "runtimeEnvYAML" in document["spec"]:
        _validate(yaml.safe_load(document["spec"]["runtimeEnvYAML"]), _RUNTIME_ENVIRONMENT)


def _check_amounts(part: Any) -> None:
    """Kubernetes takes any name of a resource, and would wait for ever for one that no node has."""
    for name, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        if name in ("requests", "limits"):
            assert set(value) <= {"cpu", "memory", "storage", "nvidia.com/gpu"}, value
        _check_amounts(value)


def _check_launcher(document: dict[str, Any]) -> None:
    schema = _launcher_schema()
    _validate(document, schema)
    assert set(document["provider"]) <= set(schema["properties"]["provider"]["properties"]), "provider"
    kinds = document["available_node_types"]
    assert document["head_node_type"] in kinds
    for kind in kinds.values():
        if document["provider"]["type"] == "aws":
            report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **kind["node_config"]}, _ec2_instance())
            assert not report.has_errors(), report.generate_report()
        else:
            _check_gcp_node(kind["node_config"])


@functools.cache
def _launcher_schema() -> Schema:
    schema: Schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    return schema


@functools.cache
def _ec2_instance() -> Any:
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _validate(document: Any, schema: Schema) -> None:
    """`jsonschema.validate` without its check of the schema itself, which takes ten times as long."""
    jsonschema.validators.validator_for(schema)(schema).validate(document)


def _check_gcp_node(config: dict[str, Any]) -> None:
    """An instance as Google's compute API describes it; its enumerations are plain strings in JSON."""
    instance = Instance.from_json(json.dumps(config), ignore_unknown_fields=False)
    scheduling = instance.scheduling
    chosen: list[tuple[str, Any]] = [
        *((disk.type_, AttachedDisk.Type) for disk in instance.disks),
        (scheduling.on_host_maintenance, Scheduling.OnHostMaintenance),
        (scheduling.provisioning_model, Scheduling.ProvisioningModel),
        (scheduling.instance_termination_action, Scheduling.InstanceTerminationAction),
    ]
    for value, enumeration in chosen:
        assert not value or value in enumeration.__members__, (value, list(enumeration.__members__))


def check_commands(text: str) -> None:
    """Every option of `ray start` and of our own `run` is one that it has."""
    start = {name for p in ray.scripts.scripts.start.params for name in p.opts}
    own = {name for p in run.params for name in p.opts}
    for line in text.splitlines():
        for command, known in (
            ("ray start", start),
            ("ray symmetric-run", start | {"--min-nodes"}),
            ("flops_fit_ray.run", own),
        ):
            for part in re.findall(rf"{re.escape(command)}\s+(.*?)(?: -- |$)", line):
                words = [w.partition("=")[0] for w in shlex.split(part, comments=True) if w.startswith("--")]
                assert set(words) <= known, (command, words)


def misspelt(text: str) -> Iterator[tuple[str, str]]:
    """Every key of a YAML file, and the file with that key misspelt."""
    for number, line in enumerate(text.splitlines()):
        for found in re.finditer(r"(?<![\w./-])([A-Za-z][\w.-]*):(?= |$)", line.partition("#")[0]):
            lines = text.splitlines()
            lines[number] = f"{line[: found.end(1)]}x{line[found.end(1) :]}"
            yield found.group(1), "\n".join(lines)
