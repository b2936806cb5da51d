"""Clients that knock without pause, each time with a new connection."""

import socket
import threading
from collections import Counter
from dataclasses import dataclass, field

Address = tuple[str, int] | str


@dataclass
class Hammer:
    """``clients`` threads; ``counts`` says how each connection ended.

    ``served``: the whole reply. ``refused``: never connected. ``lost``: connected, and
    then no full reply: what a graceful stop must not do to anybody.
    """

    address: Address
    clients: int
    word: bytes = b"hammer"
    pause: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> "Hammer":
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ended(self, how: str, count: int) -> None:
        """Wait until so many have ended so."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.counts[how] >= count, 30)
        assert done, self.counts

    def _run(self) -> None:
        while not self._stop.wait(self.pause) if self.pause else not self._stop.is_set():
            outcome = ask_once(self.address, self.word)
            with self._changed:
                self.counts[outcome] += 1
                self._changed.notify_all()
            if outcome == "refused":
                return


def ask_once(address: Address, word: bytes) -> str:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(30)
        try:
            client.connect(address)
        except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
            return "refused"
        try:
            client.sendall(word)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while data := client.recv(65536):
                answer += data
        except OSError:
            return "lost"
        return "served" if answer == word else "lost"
