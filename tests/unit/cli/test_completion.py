"""The Tab key: what is offered, in a real bash, and how it is set up and taken away."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from batcher.cli import _COMMANDS, cli
from batcher.jobdir.heartbeats import write_heartbeat
from tests.support.job_files import make_job
from tests.unit.api.test_fleet import BEAT
from tests.unit.conftest import Run

BATCHER = Path(sys.executable).with_name("batcher")


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHER_", "XDG_"))}
    return kept | {"HOME": str(home), "PATH": f"{BATCHER.parent}:{os.environ['PATH']}"} | more


def offered(folder: Path, *words: str, shell: str = "bash") -> list[str]:
    """What is offered for the last of the words behind `batcher`, by click's protocol."""
    asked = {"COMP_WORDS": " ".join(["batcher", *words]), "COMP_CWORD": str(len(words))}
    if shell == "fish":
        asked = {"COMP_WORDS": " ".join(["batcher", *words[:-1]]), "COMP_CWORD": words[-1]}
    done = subprocess.run(
        [BATCHER],
        env=environment(folder, _BATCHER_COMPLETE=f"{shell}_complete", **asked),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    if shell == "zsh":
        return done.stdout.split("\n")[1::3]
    return [line.partition(",")[2] or line for line in done.stdout.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with jobs, workers and a file."""
    for name in ("20261130-abcd", "20261130-qxkv", "tickets"):
        make_job(tmp_path / "batcher-jobs" / name, (1,))
    make_job(tmp_path / "out", (1,))
    (tmp_path / "batcher-jobs" / "no-job").mkdir()
    write_heartbeat(tmp_path / "batcher-jobs", BEAT)
    (tmp_path / "batcher-jobs" / ".workers" / "odd.json").write_text("[]")
    (tmp_path / "prompts.jsonl").write_text("")
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sta",), ["status"]),
        (("status", ""), ["tickets", "out", "20261130-qxkv", "20261130-abcd"]),
        (("status", "2026"), ["20261130-qxkv", "20261130-abcd"]),
        (("resume", "t"), ["tickets"]),
        (("results", "20261130-q"), ["20261130-qxkv"]),
        (("drain", ""), ["w1"]),
        (("diff", "tickets", "o"), ["out"]),
        (("priority", "out", "u"), ["urgent"]),
        (("models", "show", "ti"), ["tiny"]),
        (("submit", "--model", ""), ["tiny"]),
        (("worker", "--log-f"), ["--log-format"]),
        (("run", "--log-format", ""), ["text", "json"]),
        (("completion", "inst"), ["install"]),
    ],
)
def test_names_are_offered(place: Path, words: Sequence[str], expected: list[str], shell: str) -> None:
    found = offered(place, *words, shell=shell)

    # fish has descriptions behind a tab.
    assert [each.partition("\t")[0] for each in found] == expected


def test_something_is_offered_for_every_argument() -> None:
    def arguments(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
        yield from ((path, each) for each in command.params if isinstance(each, click.Argument))
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                found = command.get_command(click.Context(command), name)
                assert found is not None
                yield from arguments(found, f"{path} {name}")

    # What the hub has is not known here.
    left = {("batcher models pull", "model")}
    for path, argument in arguments(cli, "batcher"):
        has_own = argument._custom_shell_complete is not None
        is_of_type = type(argument.type).shell_complete is not click.ParamType.shell_complete
        assert has_own or is_of_type or (path, argument.name) in left, (path, argument.name)


def test_all_commands_are_offered(place: Path) -> None:
    assert offered(place, "") == list(_COMMANDS)


def test_jobs_of_another_folder_are_offered_where_the_line_says_so(place: Path) -> None:
    make_job(place / "elsewhere" / "far", (1,))

    assert offered(place, "status", "--jobs-dir", "elsewhere", "f") == ["far"]


@pytest.mark.parametrize("words", [("run", "pro"), ("run", "--model", "./ti"), ("submit", "--json-schema", "s")])
def test_files_are_left_to_the_shell(place: Path, words: Sequence[str]) -> None:
    assert offered(place, *words) == [words[-1]]


def test_nothing_heavy_is_imported_at_the_tab_key(place: Path) -> None:
    script = """if True:
        import sys
        try:
            from batcher.cli import main
            main()
        finally:
            heavy = {"pyarrow", "pydantic", "celery", "redis", "rich"}
            print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
    """
    for words in ("batcher status ", "batcher drain ", "batcher submit --model "):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split())), "_BATCHER_COMPLETE": "bash_complete"}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(place, **asked),
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == "[]\n", words


def in_bash(home: Path, script: str) -> str:
    """What an interactive bash says that has read ~/.bashrc."""
    done = subprocess.run(
        ["bash", "-i", "-c", script],
        env=environment(home),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout


TAB = 'COMP_WORDS=(batcher status 2026); COMP_CWORD=2; _batcher_completion batcher; echo "${COMPREPLY[@]}"'


def test_bash_completes_once_it_is_installed_and_no_more_once_it_is_not(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    bashrc = place / "dotfiles" / "bashrc"
    bashrc.parent.mkdir()
    before = b"export KEPT=1  # \xff, without a newline at its end"
    bashrc.write_bytes(before)
    bashrc.chmod(0o600)
    (place / ".bashrc").symlink_to(bashrc)

    for _ in range(2):
        code, stdout, stderr = run("completion install --shell bash")
        assert (code, stderr) == (0, "")
        assert str(place / ".bashrc") in stdout
    assert "as before" in stdout
    assert bashrc.read_bytes().count(b"batcher completion >>>") == 1
    assert bashrc.read_bytes().startswith(before)
    assert (bashrc.stat().st_mode & 0o777, (place / ".bashrc").is_symlink()) == (0o600, True)
    assert in_bash(place, f"echo $KEPT; {TAB}") == "1\n20261130-qxkv 20261130-abcd\n"

    assert run("completion uninstall --shell bash")[0] == 0
    assert bashrc.read_bytes() == before + b"\n"
    assert in_bash(place, "complete -p batcher") == ""
    assert run("completion uninstall --shell bash")[1] == "There is no completion for bash here.\n"


def test_zsh_and_fish_have_their_files(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", "/usr/bin/fish")

    assert run("completion install")[0] == 0
    assert "complete --no-files --command batcher" in (
        (tmp_path / ".config" / "fish" / "completions" / "batcher.fish").read_text()
    )
    assert run("completion install --shell zsh")[0] == 0
    zshrc = (tmp_path / ".zshrc").read_text()
    assert f". {tmp_path}/.local/share/batcher/completion.zsh" in zshrc
    assert "#compdef batcher" in (tmp_path / ".local" / "share" / "batcher" / "completion.zsh").read_text()

    # An editor that ends files without a newline has been at it.
    (tmp_path / ".zshrc").write_text(zshrc.rstrip("\n"))
    assert run("completion install --shell zsh")[0] == 0
    assert (tmp_path / ".zshrc").read_text() == zshrc

    (tmp_path / ".zshrc").write_text(zshrc.rstrip("\n"))
    assert run("completion uninstall")[0] == 0
    assert run("completion uninstall --shell zsh")[0] == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / ".zshrc"]
    assert (tmp_path / ".zshrc").read_text() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_printed(run: Run, shell: str) -> None:
    code, stdout, _ = run(f"completion {shell}")

    assert code == 0
    assert f"_BATCHER_COMPLETE={shell}_complete" in stdout


def test_shell_that_is_not_known_is_an_error_with_a_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/ksh")

    code, _, stderr = run("completion install")

    assert code == 2
    assert "SHELL is ksh; give --shell, one of bash, zsh, fish" in stderr


def test_place_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))

    code, _, stderr = run("completion install --shell bash")

    assert code == 2
    assert "cannot write it: Not a directory; `batcher completion bash` prints the script" in stderr
