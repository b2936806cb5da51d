"""Why a worker is told to go, or killed, and whom that costs: in the words of the log."""

from .plan import Death, WorkerHandle
from .pool import Pool
from .scoreboard import DUE, MEMORY, OUT_OF_MEMORY, REQUESTS, SECOND, SINCE, TOO_LARGE


def why_retired(pool: Pool, worker: WorkerHandle) -> str:
    due = pool.board.get(worker.slot, DUE)
    if worker.generation < pool.generation:
        return "replaced"
    if due == TOO_LARGE:
        return f"holds {max(0, pool.board.get(worker.slot, MEMORY)) >> 20} MiB, replaced"
    if due == OUT_OF_MEMORY:
        return "ran out of memory, replaced"
    if due:
        return f"served {max(0, pool.board.get(worker.slot, REQUESTS))} requests, replaced"
    return "no longer wanted"


def why_killed(pool: Pool, worker: WorkerHandle, now_ns: int) -> str:
    settings = pool.settings
    if worker.ending and worker.kill_ns <= now_ns:
        return "not gone after TERM"
    if worker.kill_ns <= now_ns:
        return f"not gone {settings.graceful_timeout:g}s after it was told to"
    if not pool.ready(worker):
        return f"not ready for more than {settings.boot_timeout:g}s"
    if settings.timeout is None:
        return "silent for longer than it announced"
    return f"silent for more than {settings.timeout:g}s"


def company(pool: Pool, worker: WorkerHandle, now_ns: int) -> str:
    """Whom it was serving, and for how long."""
    since_ns = pool.board.get(worker.slot, SINCE)
    if not since_ns:
        return ""
    busy = max(0, now_ns - since_ns) / SECOND
    return f"; {busy:.1f}s with {pool.board.peer(worker.slot) or 'a client'}"


def why_given_up(last: Death) -> str:
    line = last.report.rstrip().rpartition("\n")[2]  # of a traceback the error, of a stack ...
    cause = line if line and not line.startswith(" ") else last
    return f"no worker of the first generation could boot, giving up: {cause}"
