"""The Helm chart, as Helm rendered it (tests/containers/chart.py), agrees with the command line and with compose."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import click
import pytest
import yaml

import batcher
from batcher.api.engines import DEFAULT_GRACE_S
from batcher.broker.client import KEY_PREFIX, queue_lists
from batcher.broker.leases import LEASE_TTL_S
from batcher.broker.sender import WINDOW
from batcher.cli import cli
from batcher.jobdir.pulse import MISSED_BEATS
from batcher.jobdir.scope import SCOPE_VARIABLE
from batcher.types import PRIORITIES
from tests.containers.chart import CASES, CHART, REFUSED, RENDERED, digest
from tests.unit.house.test_containers import SERVICES, parse_command
from workers.process.beacon import BEATS_PER_LEASE

Document = dict[str, Any]
VALUES: Document = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


@cache
def rendered(case: str) -> list[Document]:
    return [each for each in yaml.safe_load_all((RENDERED / f"{case}.yaml").read_text(encoding="utf-8")) if each]


def of_kind(case: str, kind: str) -> list[Document]:
    return [each for each in rendered(case) if each["kind"] == kind]


def pods(case: str) -> Iterator[tuple[str, Document]]:
    """Name and specification of each Deployment's and StatefulSet's pod."""
    for each in (*of_kind(case, "Deployment"), *of_kind(case, "StatefulSet")):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def ours(case: str) -> Iterator[tuple[str, Document, Document]]:
    """The pods that run Batcher: the command, the pod and its container."""
    for _, pod in pods(case):
        (container,) = pod["containers"]
        if container["name"] != "redis":
            yield container["args"][0], pod, container


def environment(container: Document) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


@pytest.fixture(autouse=True)
def no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCHER_BROKER", "BATCHER_MODEL", "BATCHER_JOBS_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_tested_here_is_the_chart_as_it_is() -> None:
    noted = json.loads((RENDERED / "chart.json").read_text(encoding="utf-8"))

    assert noted == {"sha256": digest()}, "the chart has changed: run tests/containers/chart.py, as it says"


def test_chart_is_for_this_version_with_the_defaults_of_the_options() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == batcher.__version__
    assert VALUES["grace"] == DEFAULT_GRACE_S
    assert VALUES["leaseTtl"] == LEASE_TTL_S


@pytest.mark.parametrize("case", CASES)
def test_commands_parse_with_their_environment(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, container in ours(case):
        found = environment(container)
        with monkeypatch.context() as patch:
            for key, value in found.items():
                patch.setenv(key, value or "redis://elsewhere:6379/0")
            context = parse_command(container["args"])

        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known = {p.envvar for p in command.params if isinstance(p.envvar, str)} | {"BATCHER_API_KEYS", SCOPE_VARIABLE}
        assert set(found) <= known
        assert context.params["grace"] == CASES[case].get("grace", DEFAULT_GRACE_S)
        assert context.params["lease_ttl"] == LEASE_TTL_S


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_waits_longer_than_it_needs_to_stop(case: str) -> None:
    for _, pod, container in ours(case):
        # A server takes its grace twice.
        assert pod["terminationGracePeriodSeconds"] >= 2 * float(environment(container)["BATCHER_GRACE"]) + 10


@pytest.mark.parametrize("case", CASES)
def test_workers_are_probed_lightly_and_started_again_for_silence_alone(case: str) -> None:
    workers = [container for name, _, container in ours(case) if name == "worker"]

    assert workers
    for container in workers:
        for probe, words in {
            "startupProbe": ["health", "--alive"],
            "livenessProbe": ["health", "--alive"],
            "readinessProbe": ["health"],
        }.items():
            program, *arguments = container[probe]["exec"]["command"]
            assert (program, arguments) == ("batcher", words)
            parse_command(arguments)
        live = container["livenessProbe"]
        # Many times as long as a sign of life may be away.
        assert live["periodSeconds"] * live["failureThreshold"] > 5 * MISSED_BEATS * LEASE_TTL_S / BEATS_PER_LEASE


def test_server_is_probed_at_its_port() -> None:
    (container,) = (container for name, _, container in ours("all") if name == "serve")
    (service,) = (each for each in of_kind("all", "Service") if "server" in each["metadata"]["name"])
    (port,) = container["ports"]

    assert str(port["containerPort"]) == container["args"][container["args"].index("--port") + 1]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


@pytest.mark.parametrize("case", CASES)
def test_no_pod_may_more_than_it_must(case: str) -> None:
    for name, pod in pods(case):
        (container,) = pod["containers"]

        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"].get("runAsUser") != 0
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"} or case == "all"
        assert "memory" in container["resources"]["limits"]


def test_cluster_that_gives_user_ids_of_its_own_is_let() -> None:
    for _, pod, _ in ours("elsewhere"):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["securityContext"])


@pytest.mark.parametrize("case", CASES)
def test_jobs_and_scratch_are_all_that_is_written(case: str) -> None:
    claims = {each["metadata"]["name"] for each in of_kind(case, "PersistentVolumeClaim")}
    given = {CASES[case].get(key, {}).get("existingClaim") for key in ("jobs", "models")}

    for _, pod, container in ours(case):
        volumes = {each["name"]: each for each in pod["volumes"]}
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/jobs", "/tmp"}
        assert {each["name"] for each in mounts.values()} == set(volumes)
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims, *given}


@pytest.mark.parametrize("case", CASES)
def test_selectors_find_the_pods_of_their_own(case: str) -> None:
    labels = {}
    for each in (*of_kind(case, "Deployment"), *of_kind(case, "StatefulSet")):
        labels[each["metadata"]["name"]] = each["spec"]["template"]["metadata"]["labels"]
        chosen = each["spec"]["selector"]["matchLabels"]
        assert chosen.items() <= labels[each["metadata"]["name"]].items()
    for each in of_kind(case, "Service"):
        found = [name for name, has in labels.items() if each["spec"]["selector"].items() <= has.items()]
        assert found == [each["metadata"]["name"]]


def test_workers_scale_by_the_lists_of_their_model() -> None:
    (scaled,) = of_kind("all", "ScaledObject")
    *waiting, held = (trigger["metadata"] for trigger in scaled["spec"]["triggers"])
    (deployment,) = (d for d in of_kind("all", "Deployment") if d["metadata"]["name"] == scaled["metadata"]["name"])

    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "helm upgrade would undo what KEDA does"
    lists = queue_lists("smollm2-135m", scope=environment(container)["BATCHER_SCOPE"])
    assert tuple(each["listName"] for each in waiting) == lists
    assert held["listName"] == f"{KEY_PREFIX}unacked"
    assert {each["address"] for each in (*waiting, held)} == {"batcher-redis:6379"}
    assert all(trigger["authenticationRef"]["name"] == "redis-password" for trigger in scaled["spec"]["triggers"])


@pytest.mark.parametrize("case", ["all", "elsewhere"])
@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("num_shards", [1, 16, 17, 100, 10_000])
def test_workers_grow_with_a_job_of_any_priority_until_its_shards_fit(
    case: str, priority: int, num_shards: int
) -> None:
    """As KEDA and Kubernetes count: the most that any list asks for, of shards that wait and are not in work."""
    (scaled,) = of_kind(case, "ScaledObject")
    triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"][:-1]]
    most = scaled["spec"]["maxReplicaCount"]
    num_workers, seen = scaled["spec"]["minReplicaCount"], []

    while num_workers not in seen:
        seen.append(num_workers)
        num_waiting = min(num_shards, WINDOW * (1 + num_workers))
        lengths = [num_waiting if number == len(PRIORITIES) - 1 - priority else 0 for number in range(len(triggers))]
        num_workers = min(
            most, max(-(-length // int(each["listLength"])) for length, each in zip(lengths, triggers, strict=True))
        )

    fitting = -(-num_shards // int(triggers[0]["listLength"]))
    assert num_workers == min(most, fitting)
    assert seen == sorted(seen), "a step back would end workers that are needed"


def test_more_shards_for_each_worker_than_the_window_grows_by_are_refused() -> None:
    """By Helm, in tests/containers/chart.py."""
    assert f"shardsPerWorker is {WINDOW + 1}: give 1 to {WINDOW}" in REFUSED


def test_gpu_is_a_limit_of_the_container_with_the_image_for_it() -> None:
    (container,) = (c for _, _, c in ours("all") if environment(c)["BATCHER_MODEL"] == "qwen3-8b")

    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert container["image"] == "batcher:gpu"
    assert environment(container)["BATCHER_CTX"] == "8192"


def test_redis_is_started_as_in_compose() -> None:
    (redis,) = of_kind("plain", "StatefulSet")
    (container,) = redis["spec"]["template"]["spec"]["containers"]

    assert container["args"] == SERVICES["redis"]["command"]
    assert container["image"] == SERVICES["redis"]["image"]
    assert of_kind("elsewhere", "StatefulSet") == []


def test_url_with_a_password_comes_from_a_secret() -> None:
    (container,) = (container for _, _, container in ours("elsewhere"))
    (broker,) = (each for each in container["env"] if each["name"] == "BATCHER_BROKER")

    assert broker["valueFrom"] == {"secretKeyRef": {"name": "broker", "key": "url"}}
