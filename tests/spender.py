"""``python -m tests.spender SECONDS``: on SIGUSR1 spends so much processor time three times:
in a child that is reaped, in a thread that ends, and in a child that lives on."""

import os
import signal
import sys
import threading
import time

from benchmarks.processes import tell


def spend(seconds: float, clock: int) -> None:
    end = time.clock_gettime(clock) + seconds
    while time.clock_gettime(clock) < end:
        pass


def main() -> None:
    seconds = float(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    tell("ready")
    signal.sigwait({signal.SIGUSR1})
    reaped = os.fork()
    if not reaped:
        spend(seconds, time.CLOCK_PROCESS_CPUTIME_ID)
        os._exit(0)
    os.waitpid(reaped, 0)
    thread = threading.Thread(target=spend, args=(seconds, time.CLOCK_THREAD_CPUTIME_ID))
    thread.start()
    thread.join()
    living = os.fork()
    if not living:
        spend(seconds, time.CLOCK_PROCESS_CPUTIME_ID)
        tell("ended")
        signal.pause()
    signal.sigwait({signal.SIGTERM})
    os.kill(living, signal.SIGKILL)
    os.waitpid(living, 0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
