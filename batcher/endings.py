"""How a process ended, in words."""

import signal


def describe_exit(returncode: int) -> str:
    """As `Popen.returncode` has it: `exit code 1`, `signal SIGSEGV`; a real-time signal by its number."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
