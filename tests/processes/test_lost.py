"""State that is set in one worker only is told."""

import re
import signal

import pytest

from tests.conftest import Server, Starter

COUNTING = """
    from prefork_server import MasterHandle

    class Counting(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.hits += 1
            setattr(self.server, "last", self.client_address)
            self.server.seen["anybody"] = True  # which nobody can see
            self.server.counted()
            self.wfile.write(b"%d" % self.server.master.slot)

    class Server({bases}):
        hits = 0
        seen = {{}}

        def after_fork(self, master):
            self.database = "opened in each worker"

        def counted(self):
            self.count = self.hits

    with Server(("127.0.0.1", 0), Counting{how}) as server:
        server.before = "set in the master"
        server.serve_forever()
"""
OURS = COUNTING.format(bases="PreforkTCPServer", how=", workers=1")


def told(server: Server) -> list[tuple[str, str]]:
    return re.findall(r"WARNING +(\w+) is set in worker (\d+) only", server.log)


def test_what_a_handler_sets_on_the_server_is_told_once_for_each_name(start: Starter) -> None:
    server = start(OURS)
    for _ in range(3):
        assert server.ask(b"") == b"1"
    assert server.quit() == 0
    assert sorted(told(server)) == [("count", "1"), ("hits", "1"), ("last", "1")]
    assert server.count(r"do not see it: https://\S+/docs/state\.md$") == 3


@pytest.mark.parametrize("mixin", ["ThreadingMixIn", "ForkingMixIn"])
def test_what_the_standard_library_and_we_set_is_not_told(start: Starter, mixin: str) -> None:
    server = start(
        f"""
        class Hello(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(b"hello")

        class Server(PreforkMixIn, socketserver.{mixin}, socketserver.TCPServer):
            settings = Settings(workers=1)

        with Server(("127.0.0.1", 0), Hello) as server:
            server.serve_forever()
        """
    )
    for _ in range(3):
        assert server.ask(b"") == b"hello"
    assert server.quit() == 0
    assert not told(server)


def test_what_one_worker_has_told_the_others_do_not_tell_again(start: Starter) -> None:
    server = start(OURS)
    slots = {server.ask(b"")}
    server.signal(signal.SIGHUP)
    server.saw("reaped")  # until then the old worker may be the one that accepts
    slots.add(server.ask(b""))
    assert slots == {b"1", b"2"}
    assert server.quit() == 0
    assert sorted(name for name, _ in told(server)) == ["count", "hits", "last"]


def test_inline_nothing_is_told(start: Starter) -> None:
    server = start(COUNTING.format(bases="PreforkTCPServer", how=", inline=True"))
    assert server.ask(b"") == b"1"
    assert server.quit() == 0
    assert not told(server)
