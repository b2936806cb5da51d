"""CPython's own tests of the servers it has, with all these servers preforked.

A program of its own puts a ``PreforkMixIn`` version in the place of every server class
before it loads one of CPython's test modules, and runs that, with the settings that the
mix-in has by itself. What a test there expects is what users of ``socketserver`` expect.

The tests of ``http.server`` run twice more, with our handler below its handlers: in its own
servers, and in ours.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, unmeasured

pytest.importorskip(
    "test.test_socketserver",
    reason="this Python came without its tests: Debian has them in libpython3.x-testsuite",
)


TIME = 100.0  # seconds for all of them; on an idle machine they need ten

# What cannot be: it fails, and has to, or it has no business here any more.
MEMORY = "the test reads in this process what the handler wrote into its worker's memory"
PATCHED = "the test changes a class after the fork, which the worker does not see"
STDERR = "the test has replaced this process's sys.stderr, and the worker writes to its own"
COLORS = "RequestHandlerColorizedLoggingTestCase"  # 3.15
EXCEPTED = {
    f"test_httpservers.{COLORS}.test_err": STDERR,
    f"test_httpservers.{COLORS}.test_get": STDERR,
    "test_httpservers.RequestHandlerLoggingTestCase.test_err": STDERR,
    "test_httpservers.RequestHandlerLoggingTestCase.test_get": STDERR,
    "test_xmlrpc.FailingServerTestCase.test_fail_no_info": PATCHED,
    "test_xmlrpc.FailingServerTestCase.test_fail_with_info": PATCHED,
    "test_xmlrpc.GzipServerTestCase.test_gzip_request": MEMORY,
    "test_xmlrpc.GzipServerTestCase.test_gzip_response": PATCHED,
    "test_xmlrpc.HeadersServerTestCase.test_header": MEMORY,
    "test_xmlrpc.HeadersServerTestCase.test_header_empty": MEMORY,
    "test_xmlrpc.HeadersServerTestCase.test_header_items": MEMORY,
    "test_xmlrpc.HeadersServerTestCase.test_header_many": MEMORY,
    "test_xmlrpc.HeadersServerTestCase.test_header_tuple": MEMORY,
    "test_xmlrpc.KeepaliveServerTestCase1.test_two": MEMORY,
    "test_xmlrpc.KeepaliveServerTestCase2.test_close": MEMORY,
    "test_xmlrpc.KeepaliveServerTestCase2.test_transport": MEMORY,
}

EXCEPTED_OF_HANDLERS = {  # some of them are of later versions
    f"{COLORS}.test_err": "a line of the log has no colours",
    f"{COLORS}.test_get": "a line of the log has no colours",
    "HTTP09ServerTestCase.test_invalid_request": "HTTP/0.9 is not spoken",
    "HTTP09ServerTestCase.test_simple_get": "HTTP/0.9 is not spoken",
    "HTTP09ServerTestCase.test_single_request": "HTTP/0.9 is not spoken",
    "SimpleHTTPServerTestCase.test_list_dir_with_query_and_fragment": (
        "a target has no fragment: /#123 is refused"
    ),
    "BaseHTTPServerTestCase.test_request_line_trimming": "a line ends in CRLF, and not in LF CRLF",
    "BaseHTTPServerTestCase.test_version_none_get": "HTTP/0.9 is not spoken",
    "SimpleHTTPServerTestCase.test_get_dir_redirect_location_domain_injection_bug": (
        "of a target with a host in it a handler sees the path alone"
    ),
    "SimpleHTTPServerTestCase.test_path_without_leading_slash": "a path begins with a slash",
}
EXCEPTED |= {
    f"{run}.{test}": reason
    for run in ("handlers", "handlers_in_ours")
    for test, reason in EXCEPTED_OF_HANDLERS.items()
}
EXCEPTED |= {
    "handlers_in_ours.RequestHandlerLoggingTestCase.test_err": STDERR,
    "handlers_in_ours.RequestHandlerLoggingTestCase.test_get": STDERR,
}

# Sometimes it fails: it changes the directory that its server serves after serve_forever()
# was called, and so before the fork or after it. It does not run as root either.
# And of the command ``python -m http.server`` (3.14): it patches the module, of which others have a
# likeness here, and would serve for ever.
LEFT_OUT = {"test_httpservers": ["CGIHTTPServerTestCase", "CommandLineTestCase"]}

# What runs a module that is not named like it.
OTHER_RUNS = {"handlers": "test_httpservers", "handlers_in_ours": "test_httpservers"}

# How many tests there are at least, and how many workers that serve somebody.
MODULES = {
    "test_socketserver": (27, 10),
    "test_docxmlrpc": (9, 7),
    "test_httpservers": (45, 25),
    "test_xmlrpc": (90, 35),
    "test_wsgiref": (35, 0),  # handle_request() alone, which is to be what it was
    "handlers": (45, 0),
    "handlers_in_ours": (45, 25),
}

DRIVER = """
    import http.server, json, logging, os, select, socketserver, sys, threading, types, unittest
    import wsgiref.simple_server, xmlrpc.server
    import logging.config, pydoc  # their servers are not replaced
    import test.support

    from prefork_server import PreforkMixIn, Settings

    run, name, log, answer = sys.argv[1:5]
    logging.getLogger("prefork_server").addHandler(logging.FileHandler(log))
    logging.getLogger("prefork_server").setLevel("INFO")

    # The modules keep their classes, which name each other; what a test imports is a
    # likeness of the module, with the others in it.
    replaced = {}
    for original in (socketserver, http.server, wsgiref.simple_server, xmlrpc.server):
        shown = types.ModuleType(original.__name__, original.__doc__)
        for key, value in vars(original).items():
            if (
                isinstance(value, type)
                and issubclass(value, socketserver.BaseServer)
                and value is not socketserver.BaseServer
                and run != "handlers"
            ):
                if value not in replaced:
                    own = {"__module__": value.__module__}
                    replaced[value] = type(value.__name__, (PreforkMixIn, value), own)
                value = replaced[value]
            setattr(shown, key, value)
        sys.modules[original.__name__] = shown
        package, _, last = original.__name__.rpartition(".")
        if package:
            setattr(sys.modules[package], last, shown)
    simple_server = sys.modules["wsgiref.simple_server"]
    simple_server.make_server.__defaults__ = (
        simple_server.WSGIServer,
        simple_server.WSGIRequestHandler,
    )

    if run != name:
        from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

        def as_theirs(name, *bases, **attributes):
            attributes["__module__"] = "http.server"
            setattr(shown, name, type(name, bases, attributes))

        shown = sys.modules["http.server"]
        as_theirs("BaseHTTPRequestHandler", HTTPRequestHandler, logs_requests=True)
        as_theirs(
            "SimpleHTTPRequestHandler",
            shown.BaseHTTPRequestHandler,
            shown.SimpleHTTPRequestHandler,
            protocol_version="HTTP/1.0",  # which it has by itself
        )
        if run == "handlers_in_ours":
            as_theirs("HTTPServer", PreforkHTTPServer)

    suite = unittest.defaultTestLoader.loadTestsFromName("test." + name)
    left_out = sys.argv[5:]
    suite = unittest.TestSuite(
        test for case in suite for test in case if type(test).__name__ not in left_out
    )

    if name == "test_xmlrpc":
        # Its tests call handle_request() so many times, in a thread. Here a worker serves,
        # forked when all is registered, and handle_request() waits until it has begun to.
        tests = sys.modules["test.test_xmlrpc"]
        serving = []

        class Served:
            settings = Settings(workers=1)
            first = True

            def __init__(self, *args, **kwargs):
                self.begun, self.has_begun = os.pipe()
                self.thread = threading.Thread(target=self.serve_forever)
                serving.append(self)
                super().__init__(*args, **kwargs)

            def process_request(self, request, client_address):
                os.write(self.has_begun, b".")
                super().process_request(request, client_address)

            def handle_request(self):
                # Many a test announces a second request that never comes.
                if select.select([self.begun], [], [], 20 if self.first else 0.05)[0]:
                    os.read(self.begun, 1)
                self.first = False

        class Announced:
            def __init__(self, event):
                self.event = event

            def set(self):
                for server in serving:
                    if not server.thread.ident:
                        server.thread.start()
                        assert server.wait_ready(20)
                self.event.set()

        def by_workers(serve):
            return lambda event, *args: serve(Announced(event), *args)

        shown = sys.modules["xmlrpc.server"]
        for key in ("SimpleXMLRPCServer", "MultiPathXMLRPCServer"):
            setattr(shown, key, type(key, (Served, getattr(shown, key)), {}))
        multi = tests.MultiPathServerTestCase
        tests.http_server = by_workers(tests.http_server)
        tests.BaseServerTestCase.threadFunc = staticmethod(tests.http_server)
        multi.threadFunc = staticmethod(by_workers(multi.threadFunc))

        def do_cleanups(self, before=unittest.TestCase.doCleanups):
            while serving:
                server = serving.pop()
                if server.thread.ident:
                    server.shutdown()
                    server.thread.join()
                os.close(server.begun)
                os.close(server.has_begun)
            return before(self)

        unittest.TestCase.doCleanups = do_cleanups

    known = [test.id() for test in suite]
    result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    failed = [*result.failures, *result.errors]
    with open(answer, "w") as file:
        json.dump(
            {
                "known": known,
                "ran": result.testsRun,
                "failed": {test.id(): text.splitlines()[-1] for test, text in failed},
                "skipped": [test.id() for test, _ in result.skipped],
                "altered": test.support.environment_altered,
            },
            file,
        )
"""


class Run:
    """One of CPython's test modules, in a session of its own, until nobody of it is left."""

    def __init__(self, run: str, directory: Path) -> None:
        name = OTHER_RUNS.get(run, run)
        self.said, self.log, self.answer = (
            directory / f"{run}.{n}" for n in ("out", "log", "json")
        )
        home = directory / run  # what one of the tests changes to, after its server's fork
        home.mkdir()
        script = directory / "driver.py"
        self.gone, writer = os.pipe()  # end-of-file here: every descendant is gone
        command = [sys.executable, "-W", "error", script, run, name, self.log, self.answer]
        command += LEFT_OUT.get(name, [])
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[writer],
                start_new_session=True,
                cwd=home,
                env={**unmeasured(), "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(home)},
            )
        os.close(writer)

    def end(self, patience: float) -> dict[str, Any]:
        """What came of it. It ends by itself; nobody may be left then."""
        try:
            self.process.wait(patience)
            assert select.select([self.gone], [], [], 5)[0], f"somebody is left: {self.text()}"
            assert self.answer.exists(), self.text()
            answer: dict[str, Any] = json.loads(self.answer.read_text())
            return answer
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {patience:.0f} s: {self.text()}")
        finally:
            self.close()

    def text(self) -> str:
        return f"{self.said.read_text()}\n{self.log.read_text() if self.log.exists() else ''}"

    def close(self) -> None:
        if self.gone >= 0:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.gone)
            self.gone = -1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All at the same time, since most of it is waiting."""
    directory = tmp_path_factory.mktemp("cpython")
    (directory / "driver.py").write_text(textwrap.dedent(DRIVER))
    started: dict[str, Run] = {}
    try:
        for name in MODULES:
            started[name] = Run(name, directory)
        yield started
    finally:
        for run in started.values():
            run.close()


@pytest.mark.timeout(TIME + 20)
@pytest.mark.parametrize("name", MODULES)
def test_the_tests_of_cpython_pass_with_every_server_preforked_or_have_a_reason_not_to(
    runs: dict[str, Run], name: str
) -> None:
    least, serving = MODULES[name]
    run = runs[name]
    answer = run.end(TIME)
    module = OTHER_RUNS.get(name, name)
    tests = {test.partition(".")[2] for test in EXCEPTED if test.startswith(f"{name}.")}
    excepted = {f"test.{module}.{test}" for test in tests}.intersection(answer["known"])
    assert {t: e for t, e in answer["failed"].items() if t not in excepted} == {}, run.text()
    assert excepted - set(answer["failed"]) == set(), "they pass, and need no excuse any more"
    assert answer["ran"] - len(answer["skipped"]) >= least, answer
    log = run.log.read_text()
    # It was the workers who served.
    assert len(re.findall(r"worker=\d+ pid=\d+ reaped: .* requests=[1-9]", log)) >= serving, log
    # Nothing that the tests did not see, in any process.
    assert "ERROR" not in log
    assert not answer["altered"], "threads or processes were left behind"
