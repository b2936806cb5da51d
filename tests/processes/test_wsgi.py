"""WSGI by real servers: the environ, frameworks, TLS."""

import hashlib
import os
import socket
import ssl
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trustme

from prefork_server import PreforkWSGIServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, Starter, read_all
from tests.edges.test_wsgi import GET, OK, OLD, connected, parts
from tests.processes.test_everyones import two_answer

# The environ


def test_over_a_unix_socket_there_is_no_address_and_flask_lives_with_it(tmp_path: Path) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask("app")

    @app.route("/", methods=["GET", "POST"])
    def index() -> str:
        return repr(
            (flask.request.remote_addr, flask.request.url, flask.request.environ["REMOTE_PORT"])
        )

    path = str(tmp_path / "sock")
    with serving(PreforkWSGIServer(f"unix:{path}", app.wsgi_app, workers=1)):
        named = str(tmp_path / "client")
        for request, url, name in (
            (GET, "http://h/", ""),
            (OLD, "http://localhost/", ""),
            (GET, "http://h/", named),
            (GET, "http://h/", "\0named"),
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                if name:
                    client.bind(name)
                client.connect(path)
                client.sendall(request)
                assert read_all(client).endswith(repr(("", url, "")).encode())


def test_over_tls_the_scheme_is_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(300_000))

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(OK, [("Scheme", environ["wsgi.url_scheme"])])
        return environ["wsgi.file_wrapper"](big.open("rb"))

    server = PreforkWSGIServer(("127.0.0.1", 0), app, workers=1)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with (
        serving(server) as address,
        connected(address) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(GET)
        _, fields, body = parts(read_all(client))
    assert b"Scheme: https" in fields and body == big.read_bytes()


# Real servers


def test_serve_serves_at_every_address_until_a_signal(start: Starter, tmp_path: Path) -> None:
    server = start("""
        from prefork_server import serve

        def app(environ, start_response):
            start_response("200 OK", [("Multi", str(environ["wsgi.multiprocess"]))])
            return [b"%d" % os.getpid()]

        serve(app, "127.0.0.1:0", "unix:app.sock", workers=3)
        print("returned")
    """).all_ready(3)
    pids = {b"%d" % pid for pid in server.workers()}

    def ask() -> str:
        pid = parts(server.ask(GET))[2]
        assert pid in pids
        return pid.decode()

    two_answer(ask)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(tmp_path / "app.sock"))
        client.sendall(GET)
        answer = read_all(client)
    assert parts(answer)[2] in pids and b"\r\nMulti: True\r\n" in answer
    assert server.quit() == 0
    server.saw("returned")


def test_serve_without_an_address_is_at_port_8000(start: Starter) -> None:
    server = start("""
        from prefork_server.http import application

        class Told(application.PreforkWSGIServer):
            def __init__(self, addresses, *args, **keywords):
                print("asked for", addresses)
                super().__init__(["127.0.0.1:0"], *args, **keywords)

        application.PreforkWSGIServer = Told  # the port may be somebody's here
        application.serve(lambda environ, start: start("200 OK", []) and [b"here"], workers=1)
    """)
    server.saw(r"asked for \['127.0.0.1:8000'\]")
    assert server.ask(GET).endswith(b"here")


def test_nothing_is_lost_of_an_application_at_a_stop(start: Starter) -> None:
    server = start("""
        from prefork_server import serve

        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"begun"
            print("in the application")
            yield environ["wsgi.input"].read()

        serve(app, "127.0.0.1:0", workers=1)
    """).all_ready(1)
    with server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
        server.saw("in the application")
        server.signal(3)
        server.saw("SIGQUIT")
        client.sendall(b"ended")
        answer = read_all(client)
    assert answer.endswith(b"5\r\nbegun\r\n5\r\nended\r\n0\r\n\r\n")
    assert server.wait() == 0


def test_uploads_and_answers_of_any_size_cost_no_memory(start: Starter) -> None:
    server = start("""
        from prefork_server import serve
        import hashlib, resource

        def app(environ, start_response):
            digest, size = hashlib.sha256(), 0
            while piece := environ["wsgi.input"].read(65536):
                digest.update(piece)
                size += len(piece)
            start_response("200 OK", [("Digest", digest.hexdigest())])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(size // 65536):
                yield b"y" * 65536
            print("most KiB", before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        serve(app, "127.0.0.1:0", workers=1)
    """).all_ready(1)
    piece, times = b"x" * 1_000_000, 100
    digest = hashlib.sha256()
    with server.connect() as client:
        head = b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % (len(piece) * times))
        for _ in range(times):
            client.sendall(piece)
            digest.update(piece)
        answer = client.recv(65536)
        assert digest.hexdigest().encode() in answer
        length = len(answer.partition(b"\r\n\r\n")[2])
        while data := client.recv(1 << 20):
            length += len(data)
    assert length == len(piece) * times // 65536 * 65536
    before, after = map(int, server.saw(r"most KiB (\d+) (\d+)")[0].groups())
    assert before < 100_000 and after - before < 20_000  # of about 100 MB each way


DJANGO = textwrap.dedent("""
    import os
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpResponse, StreamingHttpResponse
    from django.urls import path

    settings.configure(
        SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DEBUG=False,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"], USE_TZ=True,
        LOGGING_CONFIG=None,
    )

    def index(request):
        return HttpResponse(str(os.getpid()))

    def echo(request):
        return HttpResponse(request.body + request.META["REMOTE_ADDR"].encode())

    def stream(request):
        return StreamingHttpResponse(str(n) for n in range(5))

    def file(request):
        return FileResponse(open(__file__, "rb"))

    def fail(request):
        raise KeyError("of the view")

    urlpatterns = [path("", index), path("echo", echo), path("stream", stream),
                   path("file", file), path("fail", fail)]
    app = get_wsgi_application()
""")


FLASK = textwrap.dedent("""
    import os
    import flask

    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        return str(os.getpid())

    @app.post("/echo")
    def echo():
        return flask.request.get_data() + flask.request.remote_addr.encode()

    @app.get("/stream")
    def stream():
        return flask.Response(str(n) for n in range(5))

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    @app.get("/fail")
    def fail():
        raise KeyError("of the view")
""")


BARE = textwrap.dedent("""
    import os

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/fail":
            raise KeyError("of the view")
        start_response("200 OK", [("Content-Type", "text/plain")])
        if path == "/echo":
            return [environ["wsgi.input"].read(), environ["REMOTE_ADDR"].encode()]
        if path == "/stream":
            return (str(n).encode() for n in range(5))
        if path == "/file":
            return environ["wsgi.file_wrapper"](open(__file__, "rb"))
        return [str(os.getpid()).encode()]
""")


@pytest.mark.parametrize(
    ("framework", "program"), [("django", DJANGO), ("flask", FLASK), ("wsgiref", BARE)]
)
def test_frameworks_are_served_by_several_processes(
    start: Starter, framework: str, program: str
) -> None:
    pytest.importorskip(framework)
    script = start.directory / "the_site.py"
    script.write_text(
        program + '\nif __name__ == "__main__":\n    from prefork_server import serve\n'
        '    serve(app, "127.0.0.1:0", workers=3)\n'
    )
    server = start.script(script).all_ready(3)
    server.expect_error("of the view", "Traceback", "application failed", r"Exception on /fail")

    def get(path: bytes, body: bytes = b"") -> tuple[bytes, list[bytes], bytes]:
        method = b"POST" if body else b"GET"
        return parts(
            server.ask(
                b"%b %b HTTP/1.0\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"
                % (method, path, len(body), body)
            )
        )

    pids = server.workers()

    def ask() -> int:
        pid = int(get(b"/")[2])
        assert pid in pids
        return pid

    two_answer(ask)
    assert get(b"/echo", b"hello ")[2] == b"hello 127.0.0.1"
    assert get(b"/stream")[2] == b"01234"
    _, fields, body = get(b"/file")
    assert body == script.read_bytes() and b"Content-Length: %d" % len(body) in fields
    assert get(b"/fail")[0].startswith(b"HTTP/1.1 500 ")
