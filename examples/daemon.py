"""A daemon: it leaves the terminal, and the shell has its prompt back when a worker is ready.

Start: python daemon.py - look: cat ticker.log, ps - stop: kill -QUIT $(cat ticker.pid).
A second start is refused, with the pid of the first, for as long as that one runs.
"""

import sys

from prefork_server import BootError, MasterHandle, Preforker


def work(master: MasterHandle) -> None:
    master.logger.info("worker=%d begins", master.slot)
    while master.wait(60):
        master.logger.info("worker=%d ticks", master.slot)
    # Reached on QUIT; on TERM and INT nothing more of this runs.
    master.logger.info("worker=%d has put its things away", master.slot)


if __name__ == "__main__":
    try:
        pid = Preforker(work, workers=2, app_name="ticker").start()
    except BootError as error:
        sys.exit(f"not started: {error}")
    # Only the launcher comes here. What the daemon prints goes to /dev/null: see stdout_path.
    print(f"started, pid {pid}; stop it: kill -QUIT {pid}")
