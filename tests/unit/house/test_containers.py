"""Dockerfile and docker-compose.yml hold together: with each other, with the command line and with the set-up.

No engine runs here: what the files say is read and held against what they name.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from batcher.api.engines import DEFAULT_GRACE_S
from batcher.cli import cli
from batcher.models.folder import MODELS_DIR_VARIABLE

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE_FILE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = ("worker", "worker-gpu")
#: Each service that runs `batcher`, and the command it runs.
BATCHERS = {"worker": "worker", "worker-gpu": "worker", "server": "serve"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the Dockerfile, its continuation lines joined; `stage` is the name after AS."""

    stage: str | None
    keyword: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form. Raises ValueError for the shell form, which has a shell between Docker and the program."""
        return [str(word) for word in json.loads(self.rest)]


def read_dockerfile() -> list[Instruction]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Instruction] = []
    stage = None
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            stage = rest.rpartition(" AS ")[2]
        found.append(Instruction(stage, keyword, rest))
    return found


INSTRUCTIONS = read_dockerfile()
STAGES = list(dict.fromkeys(i.stage for i in INSTRUCTIONS if i.stage))


def of_stage(stage: str, keyword: str) -> list[Instruction]:
    return [i for i in INSTRUCTIONS if i.stage == stage and i.keyword == keyword]


def defaults_of(text: str) -> str:
    """`text` as compose interpolates it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parse_command(words: list[str]) -> click.Context:
    """Parse what comes after `batcher`. Raises click.ClickException for an unknown command, option or bad value."""
    name, *arguments = words
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no such command: batcher {name}"
    return command.make_context(name, arguments)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)([sm])", duration)
    assert match, duration
    return float(match[1]) * {"s": 1, "m": 60}[match[2]]


@pytest.fixture(autouse=True)
def no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCHER_BROKER", "BATCHER_MODEL", "BATCHER_JOBS_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_services_are_a_queue_two_kinds_of_workers_and_a_server() -> None:
    assert set(SERVICES) == {"redis", *BATCHERS}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_started_again_no_root_and_reached_from_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]
    user = defaults_of(service["user"])

    assert check["test"][0] == "CMD"
    assert {"interval", "timeout"} <= set(check)
    assert service["restart"] == "unless-stopped"
    assert user.partition(":")[0] not in ("root", "0")
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", BATCHERS)
def test_what_we_run_may_nothing_and_writes_only_where_it_must(name: str) -> None:
    service = SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]


def test_redis_keeps_its_queue_and_never_forgets() -> None:
    redis = SERVICES["redis"]

    command = redis["command"]
    settings = dict(zip(command[1::2], command[2::2], strict=True))

    assert command[0] == "redis-server"
    assert settings["--appendonly"] == "yes"  # a YAML boolean would become "true"
    assert settings["--appendfsync"] == "everysec"
    assert settings["--maxmemory-policy"] == "noeviction"
    # Else it answers nobody but its own container, where no password is set.
    assert settings["--protected-mode"] == "no"
    volume, _, path = redis["volumes"][0].partition(":")
    assert path == "/data"
    assert volume in COMPOSE["volumes"]


@pytest.mark.parametrize("name", WORKERS)
def test_workers_can_be_scaled(name: str) -> None:
    service = SERVICES[name]

    assert "container_name" not in service
    assert "ports" not in service
    assert "BATCHER_NAME" not in service["environment"], "all of them would have the same name"


def test_only_the_gpu_worker_and_the_server_are_behind_profiles_and_only_it_asks_for_a_gpu() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"worker-gpu": ["gpu"], "server": ["server"]}
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker-gpu"]
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", BATCHERS)
def test_docker_waits_longer_than_it_needs_to_stop(name: str) -> None:
    assert seconds(defaults_of(SERVICES[name]["stop_grace_period"])) >= 2 * DEFAULT_GRACE_S


@pytest.mark.parametrize("name", BATCHERS)
def test_services_wait_for_the_queue_and_mount_what_they_need(name: str) -> None:
    service = SERVICES[name]
    environment = {key: defaults_of(value) for key, value in service["environment"].items()}
    mounts = {path: (source, mode) for source, path, *mode in (defaults_of(v).split(":") for v in service["volumes"])}

    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert environment["BATCHER_BROKER"] == "redis://redis:6379/0"
    assert mounts[environment["BATCHER_JOBS_DIR"]][0] in COMPOSE["volumes"]
    assert mounts[environment[MODELS_DIR_VARIABLE]][1] == ["ro"]


@pytest.mark.parametrize("name", BATCHERS)
def test_the_services_command_parses_with_its_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    for key, value in service["environment"].items():
        monkeypatch.setenv(key, defaults_of(value))
    target = service["build"]["target"]
    entrypoint = of_stage(target, "ENTRYPOINT")[-1].words
    command = service.get("command") or of_stage(target, "CMD")[-1].words

    assert [*entrypoint, *command][:2] == ["batcher", BATCHERS[name]]
    context = parse_command([*entrypoint, *command][1:])

    # Empty variables count as unset.
    assert context.params["threads"] is None
    assert context.params["grace"] == DEFAULT_GRACE_S
    assert context.params["lease_ttl"] is None
    assert context.params["models"] == ("smollm2-135m",)
    assert context.params["broker"] == "redis://redis:6379/0"


@pytest.mark.parametrize("name", BATCHERS)
def test_every_setting_is_one_of_the_command_line(name: str) -> None:
    command = cli.get_command(click.Context(cli), BATCHERS[name])
    assert command is not None
    known = {MODELS_DIR_VARIABLE, *(p.envvar for p in command.params if isinstance(p.envvar, str))}
    if name == "server":
        known.add("BATCHER_API_KEYS")

    assert set(SERVICES[name]["environment"]) <= known
    target = SERVICES[name]["build"]["target"]
    image_variables = re.findall(r"BATCHER_\w+(?==)", " ".join(i.rest for i in of_stage(target, "ENV")))
    assert image_variables
    assert set(image_variables) <= known


def test_health_checks_of_images_and_services_exist_in_the_command_line() -> None:
    checks = [service["healthcheck"]["test"][1:] for name, service in SERVICES.items() if name in WORKERS]
    for instruction in (i for i in INSTRUCTIONS if i.keyword == "HEALTHCHECK"):
        checks.append([str(word) for word in json.loads(instruction.rest.partition(" CMD ")[2])])

    assert len(checks) == 4
    for program, *words in checks:
        assert [program, *words] == ["batcher", "health"]
        parse_command(words)


def test_server_is_asked_for_its_health_at_the_port_that_it_publishes() -> None:
    server = SERVICES["server"]

    (published,) = server["ports"]
    port = published.rpartition(":")[2]

    assert server["command"][server["command"].index("--port") + 1] == port
    assert f"http://127.0.0.1:{port}/health" in server["healthcheck"]["test"][-1]


def test_examples_in_comments_parse() -> None:
    joined = re.sub(r"\\\n#\s*", "", DOCKERFILE + COMPOSE_FILE)
    examples = re.findall(r"^#\s+docker (?:compose )?run .*? (?:batcher|worker) (\w+ .+)$", joined, flags=re.MULTILINE)

    assert len(examples) == 2
    for example in examples:
        context = parse_command(shlex.split(example))
        for file in context.params["files"]:
            path = Path(file).relative_to("/data")
            assert (ROOT / path).exists() or (ROOT / "jobs" / path).exists(), file


def test_each_variable_of_the_compose_file_is_explained_in_its_head() -> None:
    head = COMPOSE_FILE.partition("\nname:")[0]
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE))

    assert {"CPUS", "BATCHER_GRACE", "STOP_GRACE_PERIOD"} <= used
    assert {name for name in used if not re.search(rf"\b{name}\b", head)} == set()


def test_build_takes_the_arguments_that_compose_passes_on() -> None:
    for name in BATCHERS:
        build = SERVICES[name]["build"]
        stage = "build-gpu" if build["target"] == "worker-gpu" else "build"
        known = {i.rest.partition("=")[0] for i in of_stage(stage, "ARG")}

        assert set(build["args"]) == known
        assert all(value == f"${{{key}:-}}" for key, value in build["args"].items())


def test_build_asks_nobody_but_index_and_base_images() -> None:
    assert not DOCKERFILE.startswith("# syntax"), "an image of its own, which is fetched first"


@pytest.mark.parametrize("stage", WORKERS)
def test_image_runs_as_a_number_with_a_home_that_group_0_may_write(stage: str) -> None:
    (user,) = of_stage(stage, "USER")
    (setup,) = (i.rest for i in of_stage(stage, "RUN") if "useradd" in i.rest)
    environment = of_stage(stage, "ENV")[0].rest.split()

    # A name would be refused by Kubernetes under runAsNonRoot.
    assert user.rest == "1000:0"
    assert "install -d -o 1000 -g 0 -m 775 /jobs /models /home/batcher" in setup
    assert {"HOME=/home/batcher", "BATCHER_JOBS_DIR=/jobs", "BATCHER_MODELS_DIR=/models"} <= set(environment)
    # Each container that mounts nothing there would leave a volume without a name behind.
    assert of_stage(stage, "VOLUME") == []


def test_signals_reach_the_worker() -> None:
    for stage in WORKERS:
        # ValueError for the shell form, in which a shell would get them.
        assert of_stage(stage, "ENTRYPOINT")[-1].words == ["batcher"]
        assert of_stage(stage, "CMD")[-1].words == ["worker"]


def test_plain_docker_build_makes_the_cpu_worker() -> None:
    assert STAGES[-1] == "worker"
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= set(STAGES)


def test_everything_copied_exists_and_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source for i in INSTRUCTIONS if i.keyword == "COPY" and "--from" not in i.rest for source in i.rest.split()[:-1]
    }

    assert lines.index("*") < lines.index("!batcher")
    assert {"batcher", "workers"} <= copied
    for source in copied:
        assert list(ROOT.glob(source)), source
    assert copied == allowed


def test_image_and_local_set_up_install_the_same_versions_from_locks() -> None:
    setup = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    images, dev = (read_lock(name) for name in ("images", "dev"))
    runs = " ".join(i.rest for i in INSTRUCTIONS if i.keyword == "RUN")
    in_images = set(re.findall(r"-r requirements/([\w-]+)\.lock", runs))

    assert in_images == {"images", "llama", "llama-build", "model", "tools"}
    assert all(f"locked {name}" in setup or f"requirements/{name}.lock" in setup for name in in_images - {"images"})
    assert images <= dev
    # Nothing comes from the index but by a lock.
    for install in re.findall(r"pip (?:--python \S+ )?(?:install|wheel) [^&]*", runs):
        assert "--require-hashes -r requirements/" in install or re.search(r"/opt/build/\S*\.whl| \. *$", install), (
            install
        )


def read_lock(name: str) -> set[tuple[str, str]]:
    """The packages of a lock and their versions, of which one may have several, for different versions of Python."""
    lock = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w.-]+)==([^ ]+)", lock, flags=re.MULTILINE))


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda path: path.stem)
def test_lock_pins_each_package_by_hash_and_names_no_index(path: Path) -> None:
    lock = path.read_text(encoding="utf-8").replace("\\\n", "")

    assert lock
    for line in lock.splitlines():
        assert re.fullmatch(r"[\w.-]+==\S+ (; [^:]+ )?( *--hash=sha256:[0-9a-f]{64})+", line), line


def test_image_compiles_for_no_processor_in_particular() -> None:
    script = (ROOT / "scripts" / "llama_portable.cmake").read_text(encoding="utf-8")
    builds = [i.rest for i in INSTRUCTIONS if i.keyword == "RUN" and "--no-binary llama-cpp-python" in i.rest]

    assert len(builds) == 2
    assert all("-DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_portable.cmake" in build for build in builds)
    assert "set(GGML_NATIVE OFF)" in script
    assert "set(GGML_CPU_ALL_VARIANTS ON)" in script
