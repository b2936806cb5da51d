"""How many calls and changes of file a request takes in a worker, which is kept as it is.

Counted by ``sys.setprofile`` in a real worker, over 100 requests: calls of functions of the
package, and how often control passes from one of its files to another, by a call or a return.
"""

import socket

from tests.conftest import PATIENCE, Starter, read_all

REQUESTS = 100
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"

WALKED = """
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer
    put("worker.accept_loop._LOOK_NS", 1 << 60)  # what is seldom true is looked at after a signal
    put("worker.accept_loop._LONG_NS", 1 << 60)  # on a machine that has no time, none is long

    class Walk:
        def __init__(self):
            self.on, self.calls, self.changes, self.here, self.stack = False, 0, 0, "", []
            sys.setprofile(self.note)

        def note(self, frame, event, _):
            if event == "call":
                self.stack.append(frame.f_code.co_filename)
                self.calls += "prefork_server" in self.stack[-1]
            elif event == "return" and self.stack:
                self.stack.pop()
            where = self.stack[-1] if self.stack else ""
            if "prefork_server" in where and where != self.here:
                self.changes += 1
                self.here = where

        def turn(self):  # between two requests: on, or off, and tell
            if self.on:
                sys.setprofile(None)
                print("walked", self.calls, self.changes, flush=True)
            self.on = not self.on
            self.calls = self.changes = 0

    walk = None

    class Echoes(socketserver.BaseRequestHandler):
        def handle(self):
            word = self.request.recv(100)
            if word == b"turn":
                walk.turn()
            self.request.sendall(word)

    class Hello(HTTPRequestHandler):
        def do_GET(self):
            if self.path == "/turn":
                walk.turn()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"Hello")

    def begin(self, master):
        global walk
        walk = Walk()

    PreforkTCPServer.after_fork = PreforkHTTPServer.after_fork = begin
"""


def walked(start: Starter, program: str, *, calls: float, changes: float) -> None:
    server = start(WALKED + program).all_ready(1)
    if "Echoes" in program:
        for word in (b"turn", *[b"word"] * REQUESTS, b"turn"):
            with server.connect() as client:
                client.sendall(word)
                assert read_all(client) == word
    else:
        with socket.create_connection(server.address, PATIENCE) as client:  # type: ignore[arg-type]
            turn = GET.replace(b"/ ", b"/turn ")
            for request in (GET, turn, *[GET] * REQUESTS, turn):
                client.sendall(request)
                answer = b""
                while not answer.endswith(b"Hello"):
                    answer += client.recv(4096)
    found = server.saw(r"walked (\d+) (\d+)")[0]
    own, turns = int(found[1]) / REQUESTS, int(found[2]) / REQUESTS
    print(f"{own:.1f} calls, {turns:.1f} changes of file")
    # The two that turn it on and off are walked half.
    assert own < calls + 1 and turns < changes + 1


def test_the_walk_of_a_connection_is_short(start: Starter) -> None:
    walked(start, "    serve(Echoes, workers=1)", calls=10, changes=12)


def test_the_walk_of_a_kept_http_request_is_short(start: Starter) -> None:
    walked(start, "    serve(Hello, PreforkHTTPServer, workers=1)", calls=20, changes=25)
