"""What workers share of the memory that was there before the fork."""

import pytest

from tests.conftest import Starter

pytestmark = pytest.mark.executed  # a zygote has frozen what it loaded

LOADED = """
    import gc
    from prefork_server.worker.heartbeat import private_bytes

    loaded = [{"number": n, "places": [n, n + 1]} for n in range(100_000)]

    class Look(socketserver.BaseRequestHandler):
        def handle(self):
            before = private_bytes()
            gc.collect()
            self.request.sendall(b"%d %d" % (gc.get_freeze_count(), private_bytes() - before))
"""


def test_a_collection_in_a_worker_makes_no_copy_of_what_the_master_has_loaded(
    start: Starter,
) -> None:
    server = start(f"{LOADED}\n    serve(Look, workers=1)")
    frozen, grown = map(int, server.ask(b"").split())
    assert frozen > 100_000
    assert grown < 1 << 20
    server = start(f"{LOADED}\n    serve(Look, workers=1, gc_freeze=False)")
    frozen, grown = map(int, server.ask(b"").split())
    assert frozen < 10_000  # CPython 3.12 has some hundreds from its start
    assert grown > 5 << 20


def test_the_program_has_its_garbage_back_when_the_server_has_stopped(start: Starter) -> None:
    server = start(f"""{LOADED}
    server = PreforkTCPServer("127.0.0.1:0", Look, workers=1)
    server.serve_forever()
    print("frozen then:", gc.get_freeze_count())
    """).ready()
    assert server.quit() == 0
    server.saw("frozen then: 0")


def test_off_the_main_thread_and_inline_nothing_is_frozen(start: Starter) -> None:
    server = start(f"""{LOADED}
    from prefork_server.testing import serving

    def asked(**settings):
        with serving(PreforkTCPServer("127.0.0.1:0", Look, **settings)) as address:
            with socket.create_connection(address) as client:
                return int(client.recv(100).split()[0])

    print("in a thread:", asked(workers=1) < 10_000)
    print("inline:", asked(inline=True) < 10_000)
    """)
    server.saw("in a thread: True")
    server.saw("inline: True")
    assert server.wait() == 0
