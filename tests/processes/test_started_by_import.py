"""The command refuses a target that starts a server of its own, and says where."""

import signal
import textwrap
from pathlib import Path

import pytest

from tests.conftest import Server, Starter

APP = """
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
"""
STARTS = {
    "wsgiref": """
        import wsgiref.simple_server
        wsgiref.simple_server.make_server("127.0.0.1", 0, app).serve_forever()  # here
    """,
    "one request after the other": """
        import socketserver
        with socketserver.TCPServer(("127.0.0.1", 0), object) as server:
            while True:
                server.handle_request()  # here
    """,
    "ours": """
        import prefork_server.http
        prefork_server.http.serve(app, "127.0.0.1:0")  # here
    """,
    "ours, as a daemon": """
        from prefork_server import Preforker
        Preforker(print, pid_path=None).start()  # here
    """,
    "a loop": """
        import asyncio
        async def main():
            async with await asyncio.start_server(print, "127.0.0.1", 0) as server:
                await server.serve_forever()
        try:
            asyncio.run(main())  # here
        except Exception as error:
            raise SystemExit(f"stopped: {error}")
    """,
    "accept": """
        import socket
        def forever(listener):
            while True:
                listener.accept()
        forever(socket.create_server(("127.0.0.1", 0)))  # here
    """,
}


def serve(start: Starter, *words: str) -> Server:
    return start.script(
        Path("-m"), "prefork_server", "serve", "--bind", "127.0.0.1:0", "--workers", "1", *words
    )


def write(path: Path, text: str) -> str:
    """The file, whose line ``# here`` is returned as ``name.py:line``."""
    path.write_text(textwrap.dedent(APP) + textwrap.dedent(text))
    lines = path.read_text().splitlines()
    return f"{path.name}:{next((n for n, line in enumerate(lines, 1) if '# here' in line), 0)}"


@pytest.mark.parametrize("how", STARTS)
def test_a_target_that_starts_a_server_when_it_is_imported_is_refused_with_its_line(
    how: str, start: Starter
) -> None:
    place = write(start.directory / "own.py", STARTS[how])
    server = serve(start, "own:app")
    server.expect_error("Traceback")  # development mode: its socket was not closed
    assert server.wait() == 3
    (line,) = server.saw("cannot load own:app: it starts a server")
    assert f"/{place}: " in line.string
    assert "__name__" in line.string
    assert not server.count("listening")


def test_the_line_is_that_of_the_module_that_starts_it(start: Starter) -> None:
    place = write(start.directory / "below.py", STARTS["wsgiref"])
    write(start.directory / "above.py", "import below")
    server = serve(start, "above:app")
    server.expect_error("Traceback")
    assert server.wait() == 3
    server.saw(f"/{place}: ")


def test_a_server_in_another_thread_or_process_is_the_target_s_own_affair(start: Starter) -> None:
    write(
        start.directory / "own.py",
        """
        import multiprocessing, threading
        from wsgiref.simple_server import make_server
        asked, beside = make_server("127.0.0.1", 0, app), make_server("127.0.0.1", 0, app)
        process = multiprocessing.get_context("fork").Process(target=asked.serve_forever)
        process.start()
        process.kill()
        process.join()
        threading.Thread(target=beside.serve_forever, daemon=True).start()
        """,
    )
    server = serve(start, "own:app").ready()
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"ok")


def test_an_import_that_waits_for_something_else_is_shown_after_boot_timeout(
    start: Starter,
) -> None:
    write(
        start.directory / "own.py",
        """
        import threading
        def wait_for_it():
            threading.Event().wait()  # here
        wait_for_it()
        """,
    )
    server = serve(start, "own:app", "--boot-timeout", "1")
    assert server.wait() == 3
    server.saw(r'own\.py", line \d+ in wait_for_it')
    server.saw(r"not loaded after 1s \(boot_timeout\): does it start a server")
    assert not server.count("prefork_server/cli")


def test_code_that_starts_a_server_after_a_reload_is_told_with_its_line(start: Starter) -> None:
    write(start.directory / "own.py", "")
    server = serve(start, "own:app").ready()
    # A worker that has served, or has been ready for a second, has its successors checked.
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"ok")
    place = write(start.directory / "own.py", STARTS["wsgiref"])
    server.expect_error("reload failed", "Traceback")
    server.signal(signal.SIGHUP)
    server.saw(f"it starts a server when it is loaded, at .*/{place}: ")
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"ok")


def test_what_an_import_patches_stays_and_what_it_keeps_of_a_server_can_be_called(
    start: Starter,
) -> None:
    """As instrumentation does, and classes that give a method another name."""
    write(
        start.directory / "own.py",
        """
        import socket, socketserver
        real = socket.socket.accept

        def accept(listener):
            return real(listener)

        socket.socket.accept = accept

        class Once(socketserver.TCPServer):
            serve_one = socketserver.BaseServer.handle_request

            def get_request(self):
                raise OSError("nothing is there")

        def app(environ, start_response):
            with (
                socket.create_server(("127.0.0.1", 0)) as listener,
                socket.create_connection(listener.getsockname()),
                listener.accept()[0],
            ):
                pass
            with Once(("127.0.0.1", 0), object) as server:
                server.timeout = 0
                server.serve_one()
            start_response("200 OK", [])
            return [b"patched" if socket.socket.accept is accept else b"not patched"]
        """,
    )
    server = serve(start, "own:app").ready()
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\npatched")
