"""The command `completion`: the Tab key in bash, zsh and fish, set up and taken away again.

bash, zsh   a script in XDG_DATA_HOME/batcher, and a marked block in ~/.bashrc or ~/.zshrc that reads it
fish        a script in XDG_CONFIG_HOME/fish/completions, where fish looks
"""

import contextlib
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from batcher.cli.options import option
from batcher.errors import InputError

SHELLS = ("bash", "zsh", "fish")
_BEGIN, _END = "# >>> batcher completion >>>", "# <<< batcher completion <<<"
_BLOCK = re.compile(rf"\n?^{re.escape(_BEGIN)}$.*?^{re.escape(_END)}$\n?", re.DOTALL | re.MULTILINE)

shell_option = option(
    "--shell",
    type=click.Choice(SHELLS),
    envvar="BATCHER_COMPLETION_SHELL",
    help="Whose completion. [default: that of the environment's SHELL]",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a shell's completion goes: its script, and the file that it reads at its start, where that is needed."""

    script: Path
    startup: Path | None = None

    @property
    def block(self) -> str:
        """What stands in the startup file."""
        path = shlex.quote(str(self.script))
        lines = [_BEGIN]
        if self.script.suffix == ".zsh":
            lines.append("(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }")
        lines += [f"[ -r {path} ] && . {path}", _END]
        return "\n".join(lines) + "\n"


@click.group("completion")
def completion_command() -> None:
    """Complete commands, options, and the names of jobs, models and workers by the Tab key.

    \b
    Example:
      batcher completion install
    """


@completion_command.command("install")
@shell_option
def install_command(*, shell: str | None) -> int:
    """Set completion up for the shells that you start from now on; again, it is renewed.

    \b
    Example:
      batcher completion install --shell zsh
    """
    place = _place(chosen := _choose(shell))
    _write(place.script, _script(chosen), chosen)
    click.echo(f"Wrote {place.script}.")
    if place.startup is not None:
        before = _read(place.startup)
        after = _BLOCK.sub("", before)
        after += ("" if not after or after.endswith("\n") else "\n") + f"\n{place.block}"
        if after != before:
            _write(place.startup, after, chosen)
        click.echo(f"{place.startup} reads it ({'as before' if after == before else 'a block at its end'}).")
    click.echo(f"Start a new {chosen}, and press Tab behind `batcher status `.")
    return 0


@completion_command.command("uninstall")
@shell_option
def uninstall_command(*, shell: str | None) -> int:
    """Take away what `batcher completion install` has written.

    \b
    Example:
      batcher completion uninstall
    """
    place = _place(chosen := _choose(shell))
    done = []
    if place.startup is not None and (after := _BLOCK.sub("", before := _read(place.startup))) != before:
        _write(place.startup, after, chosen)
        done.append(f"Took the block out of {place.startup}.")
    if place.script.exists():
        try:
            place.script.unlink()
        except OSError as exc:
            raise InputError(f"{place.script}: cannot delete it: {exc.strerror or exc}; delete it yourself") from exc
        done.append(f"Deleted {place.script}.")
    click.echo("\n".join(done) or f"There is no completion for {chosen} here.")
    return 0


def _printing(shell: str) -> click.Command:
    def show() -> int:
        click.echo(_script(shell))
        return 0

    return click.Command(
        shell,
        callback=show,
        help=f"Print the script for {shell}.\n\n\b\nExample:\n  batcher completion {shell} > batcher.{shell}",
    )


for _shell in SHELLS:
    completion_command.add_command(_printing(_shell))


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from batcher.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    completer = found(cli, {}, "batcher", "_BATCHER_COMPLETE")
    # Not `source`: to look at the version of a bash is of no use where the script is for another machine.
    return completer.source_template % completer.source_vars()


def _choose(shell: str | None) -> str:
    name = shell or Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise click.UsageError(
            f"the environment's SHELL is {name or 'not set'}; give --shell, one of {', '.join(SHELLS)}"
        )
    return name


def _place(shell: str) -> Place:
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "batcher"
    if shell == "bash":
        return Place(data / "completion.bash", home / ".bashrc")
    if shell == "zsh":
        return Place(data / "completion.zsh", Path(os.environ.get("ZDOTDIR") or home) / ".zshrc")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return Place(config / "fish" / "completions" / "batcher.fish")


def _read(path: Path) -> str:
    """The file, whatever its bytes; empty where there is none."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise InputError(f"{path}: cannot read it: {exc.strerror or exc}; mend that, and try again") from exc


def _write(path: Path, text: str, shell: str) -> None:
    """Replace the file at once, so that no shell reads half of it; where it is a link, what that leads to."""
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o644
        descriptor, made = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8", "surrogateescape"))
            Path(made).chmod(mode)
            Path(made).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(made).unlink()
            raise
    except OSError as exc:
        raise InputError(
            f"{path}: cannot write it: {exc.strerror or exc}; `batcher completion {shell}` prints the script, for a "
            "place of your choice"
        ) from exc
