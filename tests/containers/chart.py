"""The Helm chart as Helm itself lints and renders it, held against the Kubernetes API's schema.

    python -m venv /tmp/helm && /tmp/helm/bin/pip install helm-python-sdk kubernetes-validate
    /tmp/helm/bin/python tests/containers/chart.py            # again after each change of charts/batcher

`helm-python-sdk` is Helm 4 as a library, `kubernetes-validate` has the schemas; neither is among our locks. What comes
out is written to tests/data/chart/. tests/unit/house/test_chart.py, which needs no Helm, holds it against Batcher's own
defaults, and finds out if the chart has changed since.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "batcher"
RENDERED = ROOT / "tests" / "data" / "chart"

#: Installations, each with the values that it gives.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "workers": {
            "default": {
                "autoscaling": {"enabled": True, "authenticationRef": "redis-password"},
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
            },
            "gpu": {
                "model": "qwen3-8b",
                "gpus": 1,
                "image": {"tag": "gpu"},
                "resources": {"limits": {"memory": "16Gi"}},
                "env": {"BATCHER_CTX": 8192},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            },
        },
        "server": {
            "enabled": True,
            "apiKeysSecret": "keys",
            "podMonitor": {"enabled": True, "authorization": {"credentials": {"name": "metrics", "key": "key"}}},
        },
        "grace": 20,
        "jobs": {"storageClassName": "nfs"},
        "models": {"existingClaim": "gguf"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "elsewhere": {
        "workers": {
            "default": None,
            "qwen": {
                "model": "qwen3-8b",
                "resources": {"requests": {"cpu": "8", "memory": "12Gi"}, "limits": {"cpu": "8", "memory": "12Gi"}},
                "autoscaling": {"enabled": True, "address": "redis.example:6379", "shardsPerWorker": 16},
            },
        },
        "redis": {"enabled": False},
        "broker": {"existingSecret": "broker"},
        "jobs": {"existingClaim": "jobs"},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    },
}


#: Values that the chart refuses, and words of the reason.
REFUSED: dict[str, dict[str, Any]] = {
    "goes into a Secret": {
        "redis": {"enabled": False},
        "broker": {"url": "redis://:password@queue.example:6379/0"},
    },
    "redis.enabled: set it to false": {"broker": {"existingSecret": "broker"}},
    "give broker.url or broker.existingSecret": {"redis": {"enabled": False}},
    "a Secret whose key": {"server": {"enabled": True}},
    "workers.default.autoscaling.address": {
        "redis": {"enabled": False},
        "broker": {"url": "redis://queue.example:6379/0"},
        "workers": {"default": {"autoscaling": {"enabled": True}}},
    },
    "shardsPerWorker is 17: give 1 to 16": {
        "workers": {"default": {"autoscaling": {"enabled": True, "shardsPerWorker": 17}}},
    },
}


def digest() -> str:
    """Of all files of the chart."""
    whole = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(CHART).as_posix()}\n".encode() + path.read_bytes())
    return whole.hexdigest()


def render(values: dict[str, Any]) -> str:
    """What `helm template` prints for a release `batcher`."""
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="batcher", namespace="jobs")
    return "".join(
        f"---\n{text.strip()}\n" for name, text in sorted(files.items()) if name.endswith(".yaml") and text.strip()
    )


def main() -> int:
    """Lint, render, validate and write; returns the exit code."""
    import helm_python
    import kubernetes_validate
    import yaml

    problems = []
    for name, values in CASES.items():
        report = helm_python.lint(CHART, values, strict=True)
        problems += [f"{name}: lint: {message}" for message in report["messages"] if message["severity"] > 1]
        text = render(values)
        unknown = set()
        for document in filter(None, yaml.safe_load_all(text)):
            try:
                kubernetes_validate.validate(
                    document, desired_version=kubernetes_validate.latest_version(), strict=True
                )
            except kubernetes_validate.SchemaNotFoundError:
                unknown.add(document["kind"])  # of an operator, not of Kubernetes
            except kubernetes_validate.ValidationError as exc:
                problems.append(f"{name}: {document['kind']} {document['metadata']['name']}: {exc.message}")
        RENDERED.mkdir(exist_ok=True)
        (RENDERED / f"{name}.yaml").write_text(f"# Written by tests/containers/chart.py.\n{text}")
        kinds = len(list(filter(None, yaml.safe_load_all(text))))
        print(f"{name}: {kinds} objects; no schema for {sorted(unknown) or 'none of them'}")
    for reason, values in REFUSED.items():
        try:
            render(values)
            problems.append(f"not refused: {reason}")
        except helm_python.HelmRenderError as exc:
            if reason not in str(exc):
                problems.append(f"refused for another reason than {reason}: {exc}")
    (RENDERED / "chart.json").write_text(json.dumps({"sha256": digest()}) + "\n")
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"Helm {helm_python.helm_sdk_version()}, Kubernetes {kubernetes_validate.latest_version()}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
