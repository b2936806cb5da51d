"""No socket at all: workers take jobs from a table of SQLite, which any program may fill.

Add 300: python job_queue.py jobs.db 300 - work: python job_queue.py jobs.db - stop: Ctrl-C,
or kill -QUIT $(cat job_queue.pid), which lets each worker finish the job at hand.
Kill a worker in the middle of one (kill -9): when its lease is over, another takes it again.
"""

import hashlib
import os
import sqlite3
import sys
import time
from contextlib import closing

from prefork_server import MasterHandle, Preforker

PATH = sys.argv[1] if len(sys.argv) > 1 else "jobs.db"
PATIENCE = 6.0  # seconds to wait for one's turn to write, on a slow disk
TIMEOUT = 8.0  # seconds a job may take, that wait and all, before its worker is killed
LEASE = 9.0  # seconds a job is its worker's; longer than TIMEOUT, so that nobody is still at it

TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY,
    payload TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    leased_until REAL NOT NULL DEFAULT 0,
    worker INTEGER,  -- who has it, or did it
    result TEXT      -- NULL: not done
)"""
# One statement takes the write lock before it looks: no two workers get the same job.
CLAIM = """
UPDATE jobs SET tries = tries + 1, leased_until = :now + :lease, worker = :pid
WHERE id = (SELECT id FROM jobs WHERE result IS NULL AND leased_until < :now ORDER BY id LIMIT 1)
RETURNING id, payload, tries"""
# Only if nobody has taken it since: a result is written once, by whoever has the lease.
FINISH = "UPDATE jobs SET result = ? WHERE id = ? AND tries = ? AND result IS NULL"


def connect(path: str) -> "closing[sqlite3.Connection]":
    """Each statement is a transaction of its own, and waits for its turn to write."""
    return closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None))


def do(payload: str) -> str:
    digest = payload.encode()
    for _ in range(10_000):
        digest = hashlib.sha256(digest).digest()
    return digest.hex()


def work(master: MasterHandle) -> None:
    # Opened after the fork: no SQLite connection may be used in two processes.
    with connect(PATH) as database:
        while master.wants_me_alive():
            lease = {"now": time.time(), "lease": LEASE, "pid": os.getpid()}
            claimed = database.execute(CLAIM, lease).fetchall()  # all: only then it is committed
            for number, payload, tries in claimed:
                database.execute(FINISH, (do(payload), number, tries))
            if not claimed:
                master.wait(0.2)  # a sign of life, and cut short when it is time to go


def add(database: sqlite3.Connection, count: int) -> None:
    jobs = [(f"job {number}",) for number in range(count)]
    database.execute("BEGIN")  # one transaction for all of them
    database.executemany("INSERT INTO jobs (payload) VALUES (?)", jobs)
    database.execute("COMMIT")


if __name__ == "__main__":
    with connect(PATH) as database:  # and closed before the fork
        database.execute("PRAGMA journal_mode = WAL")  # who reads does not wait for who writes
        database.execute(TABLE)
        if len(sys.argv) > 2:
            add(database, int(sys.argv[2]))
    if len(sys.argv) <= 2:
        Preforker(work, workers=4, timeout=TIMEOUT, app_name="job_queue").run()
