"""Start a successor on the same sockets; leave when it serves, stay if it never does.

The protocol, spoken over a socket pair; the new master's half is in ``inheritance``:

    the old master                          the new one
    forks, executes the same command   -->  takes the sockets over, by the addresses in the
                                            program, and the locks of the pid file
                                       <--  HEARS: signals are heard, and no worker forked yet
    goes on serving                    <--  READY: a worker has served somebody, or for a second
    2 s later, if it still lives: YOURS, -> may remove the paths and the pid file from now on
    and leaves

Any other word of the new one says why it is about to end. The end of the talk in place of a
word says that the other one is gone.
"""

import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NoReturn

from .errors import PreforkError
from .forks import drop, fork, keep_from_forks
from .inheritance import HEARS, READY, WORDS, YOURS, inheritance
from .journal import Journal
from .listeners import Listener
from .origin import COMMAND, DIRECTORY, ENVIRONMENT, VARIABLE
from .pidfile import Claim
from .scoreboard import NEVER, SECOND, SUCCESSOR, UPGRADES_FAILED, Scoreboard
from .signals import Inbox, all_blocked
from .text import printable

_PROBATION_NS: Final = 2 * SECOND  # who crashes so soon after it was ready is no successor
_NOT_ITS: Final = (VARIABLE, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Upgrade:
    """The old master's half. It is told the time, and says when to leave."""

    def __init__(
        self,
        boot_ns: int,
        listeners: Sequence[Listener],
        claim: Claim,
        journal: Journal,
        board: Scoreboard,
        inbox: Inbox,
    ) -> None:
        self._boot_ns = boot_ns
        self._listeners = listeners
        self._claim = claim
        self._say = journal.say
        self._board = board  # where whoever asked for it sees what came of it
        self._inbox = inbox  # which its end wakes
        self._pid = 0  # of the successor; 0: there is none
        self._pidfd = -1
        self._talk: socket.socket | None = None
        self._begun_ns = 0
        self._ready_ns = NEVER
        self._killed = self._hears = False
        self._ended_by_us = False
        self._asked = False  # for a successor that could not be started yet
        self._reason = ""  # why it failed, as it says
        self._failures = 0

    def ask(self, serving: bool, stopping: bool) -> None:
        """USR2: the next ``look`` at which this master may have a successor starts it. The log
        says why that is not now, or never."""
        refusal = self._refusal(stopping)
        if refusal:
            self._refuse(refusal)
            return
        self._asked = True
        if not serving or not inheritance().settled():
            until = "its predecessor has left" if serving else "it serves"
            message = "SIGUSR2: remembered: this master upgrades when %s"
            self._say(logging.INFO, "upgrade_remembered", None, message, until)

    @property
    def wake_ns(self) -> int:
        """When to look again, if nothing happens before."""
        if not self._pid or self._killed or self._reason:  # its end wakes us
            return NEVER
        if self._ready_ns < NEVER:
            return self._ready_ns + _PROBATION_NS
        return self._begun_ns + self._boot_ns

    def look(self, now_ns: int, serving: bool) -> bool:
        """Whether the successor serves, and everything is its own: leave."""
        if not self._pid:
            # For a successor this is also how it hears that everything is its own.
            if inheritance().settled() and serving and self._asked:
                self._begin(now_ns)
            return False
        self._listen(now_ns)
        status = self._ended()
        if status is not None:
            self._fail(status)
        elif self._ready_ns < NEVER:
            passed = now_ns - self._ready_ns >= _PROBATION_NS
            return passed and not self._reason and self._hand_over()
        elif now_ns - self._begun_ns >= self._boot_ns and not self._killed:
            self._killed = True
            self._signal(signal.SIGKILL)
        return False

    def end(self, now_ns: int, hurry: bool) -> None:
        """We are told to stop: so is it. Before it hears signals, QUIT would leave a core."""
        if self._asked:
            self._asked = False
            self._refuse("this master is stopping")
        if self._pid:
            self._listen(now_ns)
            self._ended_by_us = True
            now = signal.SIGINT if self._hears else signal.SIGTERM  # which may mean gracefully
            self._signal(signal.SIGQUIT if self._hears and not hurry else now)

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody is about to end whom we have told to: what is left is ours again."""
        return self._pid > 0 and self._hears

    def close(self) -> None:
        """We are gone: what there is of a successor has everything. Who was told to end before
        it heard signals would have a door that is shut."""
        if self._pid and self._ended_by_us and not self._hears:
            self._signal(signal.SIGKILL)
        if self._talk:
            drop(self._talk.detach())
            self._talk = None
        if self._pidfd >= 0:
            self._inbox.unwatch(self._pidfd)
            drop(self._pidfd)
            self._pidfd = -1

    def _refusal(self, stopping: bool) -> str:
        if os.getpid() == 1:
            return "process 1 has no successor: its container would end with it"
        if stopping:
            return "this master is stopping"
        return f"one is under way, pid={self._pid}" if self._pid else ""

    def _refuse(self, reason: str) -> None:
        if not self._pid:  # of the one that is under way it will be seen how it ends
            self._count_failure()
        self._say(logging.WARNING, "upgrade_refused", None, "SIGUSR2: no upgrade: %s", reason)

    def _begin(self, now_ns: int) -> None:
        self._asked = False
        try:
            self._start(now_ns)
        except OSError as error:
            self._refuse(f"cannot start it: {error.strerror}")
        else:
            message = "SIGUSR2: started a successor, pid=%d"
            self._say(logging.INFO, "upgrading", None, message, self._pid)

    def _start(self, now_ns: int) -> None:
        # A path that was removed is made again, by whoever comes anew.
        sockets = [each.legacy for each in self._listeners if not each.deserted]
        with ExitStack() as closing:
            locks = []
            for path, fd in self._claim.locks:
                locks.append((path, os.dup(fd)))  # ours is closed in every fork
                closing.callback(os.close, locks[-1][1])
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            closing.enter_context(theirs)
            keep_from_forks(ours.fileno())
            ours.setblocking(False)
            will = {
                "parent": os.getpid(),
                "talk": theirs.fileno(),
                "sockets": sockets,
                "locks": locks,
            }
            fds = [theirs.fileno(), *(each.fd for each in sockets), *(fd for _, fd in locks)]
            try:
                text = json.dumps(will)
                with all_blocked() as mask:
                    pid = fork()
                    if pid == 0:
                        _become_successor(text, fds, mask)
            except OSError:
                drop(ours.detach())
                raise
        self._talk, self._pid, self._claim.lent = ours, pid, True
        with suppress(OSError, AttributeError):  # no such call or descriptor: a tick finds out
            self._pidfd = keep_from_forks(os.pidfd_open(pid))
            self._inbox.watch(self._pidfd)
        self._board.set(0, SUCCESSOR, pid)
        self._begun_ns, self._ready_ns, self._reason = now_ns, NEVER, ""
        self._killed = self._hears = False

    def _signal(self, signum: int) -> None:
        try:
            os.kill(self._pid, signum)
        except ProcessLookupError:
            pass  # it died first, and is not reaped yet
        except OSError as error:  # it has become another user
            message = "the successor pid=%d cannot be signalled: %s"
            self._say(logging.ERROR, "not_signalled", None, message, self._pid, error.strerror)

    def _ended(self) -> str | None:
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return "exit status unknown, reaped by somebody else"
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"

    def _fail(self, status: str) -> None:
        when = "before it was ready" if self._ready_ns == NEVER else "right after it was ready"
        if self._killed:
            when = f"since it was not ready within {self._boot_ns / SECOND:g}s"
        reason = f": {self._reason}" if self._reason else ""
        pid = self._pid
        self._count_failure()
        self._forget()
        with suppress(PreforkError):  # a full disk; the number inside is information
            self._claim.renew()
        if self._ended_by_us:
            message = "the successor pid=%d ended, as it was told to: %s"
            self._say(logging.INFO, "upgrade_ended", None, message, pid, status)
            return
        message = "upgrade failed, this master serves on: the successor pid=%d ended %s: %s%s"
        self._say(logging.ERROR, "upgrade_failed", None, message, pid, when, status, reason)

    def _listen(self, now_ns: int) -> None:
        with suppress(OSError):  # nothing more; or it is gone, and we are about to see how
            while self._talk and (word := self._talk.recv(WORDS)):
                if word == HEARS:
                    self._hears = True
                    if self._ended_by_us:
                        self._signal(signal.SIGQUIT)
                elif word == READY:
                    self._ready_ns = min(self._ready_ns, now_ns)
                else:
                    self._reason = printable(word.decode("utf-8", "backslashreplace"))

    def _hand_over(self) -> bool:
        try:
            if self._talk:
                self._talk.send(YOURS, socket.MSG_NOSIGNAL)
        except OSError:
            return False  # it is gone; the next look finds out how
        self._say(logging.INFO, "upgraded", None, "the successor pid=%d serves, leaving", self._pid)
        for listener in self._listeners:
            listener.leave()
        self._claim.leave()
        self._forget()
        return True

    def _count_failure(self) -> None:
        self._failures += 1  # what stands on the board a worker may have written
        self._board.set(0, UPGRADES_FAILED, self._failures)

    def _forget(self) -> None:
        self._pid, self._claim.lent = 0, False
        self._board.set(0, SUCCESSOR, 0)
        self.close()


def _become_successor(will: str, fds: Sequence[int], mask: set[int]) -> NoReturn:
    """In the fork: the same command anew, in the environment and the directory of its start.

    The first of ``fds`` is the talk, which says what cannot be done.
    """
    program, words = COMMAND
    step = "pass the sockets on"
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        environ = {name: value for name, value in ENVIRONMENT.items() if name not in _NOT_ITS}
        if "WATCHDOG_PID" in environ:
            environ["WATCHDOG_PID"] = str(os.getpid())
        environ[VARIABLE] = will
        if DIRECTORY:
            step = f"enter the directory {DIRECTORY}, where this program was started"
            os.chdir(DIRECTORY)
        for signum in signal.valid_signals():
            # A handler of ours would note in a memory that is about to go what is meant for it.
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        step = f"execute {program}"
        os.execve(program, words, environ)  # noqa: S606
    except OSError as error:
        os.write(fds[0], f"cannot {step}: {error.strerror}".encode("utf-8", "replace")[:WORDS])
    finally:
        os._exit(127)
