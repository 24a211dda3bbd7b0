"""Resident memory of this process, as Linux tells it. The standard library suffices."""

from pathlib import Path

PROCESS = Path("/proc/self")


def held_bytes() -> int:
    """Return what this process holds now."""
    return _bytes("VmRSS")


def peak_bytes() -> int:
    """Return the most that it held; ``ru_maxrss`` begins at the peak of whoever started it."""
    return _bytes("VmHWM")


def forget_peak() -> None:
    """Let the peak begin again at what is held now."""
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")


def _bytes(key: str) -> int:
    status = (PROCESS / "status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{key}:")[1].split()[0])
