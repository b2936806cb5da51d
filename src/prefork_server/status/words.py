"""Figures as people read them: the same words on the page and in the command."""


def duration(seconds: float) -> str:
    """``4.1s``, ``3m05s``, ``2h07m``, ``12d03h``."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f}s"
    for size, big, small in ((86400, "d", "h"), (3600, "h", "m"), (60, "m", "s")):
        if seconds >= size:
            part = {"h": 3600, "m": 60, "s": 1}[small]
            return f"{int(seconds // size)}{big}{int(seconds % size // part):02}{small}"
    return ""


def size(count: int) -> str:
    """``312 KiB``, ``12.5 MiB``."""
    if count < 1 << 20:
        return f"{count >> 10} KiB"
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.2f} GiB"
