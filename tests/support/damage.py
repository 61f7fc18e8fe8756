"""Damages files as disks and hands do."""

from pathlib import Path


def flip(path: Path, share: float) -> None:
    """Flip a bit somewhere behind this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
