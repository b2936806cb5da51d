"""Servers where a system call, a file system or a module is missing: old kernels, sandboxes,
containers, a chroot, small limits."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server, Starter, eventually, unmeasured

SECCOMP = ROOT / "tests" / "seccomp.py"
APPLICATION = """
import os, sys

def application(environ, start_response):
    if environ["PATH_INFO"] == "/die":
        os._exit(3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

BODY = b"0123456789abcdef" * 20_000

def file(environ, start_response):
    with open("body", "wb") as made:
        made.write(BODY)
    start_response("200 OK", [("Content-Type", "text/plain")])
    body = open("body", "rb")
    body.seek(7)
    return environ["wsgi.file_wrapper"](body)
"""
ECHO = """
    sys.path.insert(0, {root!r})
    from tests.seccomp import refuse
    {refused}
    serve(Echo, workers=2)
"""


@pytest.fixture
def serving(start: Starter) -> Callable[..., Server]:
    """``serving(calls, *options)``: the command under a filter, with 2 workers."""
    start.directory.joinpath("app.py").write_text(APPLICATION)

    def begin(calls: tuple[str, ...], *options: str) -> Server:
        words = [*calls, "--", "-m", "prefork_server", "serve", *options, "--workers", "2"]
        return start.script(SECCOMP, *words, executed=True, env=unmeasured())

    return begin


def get(server: Server, path: str = "/") -> bytes:
    answer = server.ask(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    return answer.partition(b"\r\n\r\n")[2]


# pidfds


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM", "EINVAL"])
def test_without_pidfds_workers_are_replaced_reloaded_and_stopped(
    error: str, serving: Callable[..., Server]
) -> None:
    calls = f"pidfd_open={error}", f"pidfd_send_signal={error}"
    server = serving(calls, "app", "--bind", "127.0.0.1:0").ready()
    server.expect_error("worker=1 .* reaped.*: killed by SIGKILL")
    first = int(server.saw(r"worker=1 pid=(\d+) forked")[0][1])
    os.kill(first, signal.SIGKILL)
    server.saw(r"worker=1 pid=\d+ forked", times=2)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert get(server)
    assert server.quit() == 0


def test_a_pidfd_that_cannot_be_used_is_replaced_by_the_number(
    serving: Callable[..., Server],
) -> None:
    """``pidfd_open`` is permitted, ``pidfd_send_signal`` is not."""
    server = serving(("pidfd_send_signal=EPERM",), "app", "--bind", "127.0.0.1:0").ready()
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert not server.count("cannot be signalled|was not sent")
    assert server.quit() == 0


def test_without_pidfds_an_upgrade_works(serving: Callable[..., Server]) -> None:
    calls = ("pidfd_open=ENOSYS", "pidfd_send_signal=ENOSYS")
    server = serving(calls, "app", "--bind", "127.0.0.1:0", "--pid-path", "x.pid").ready()
    server.signal(signal.SIGUSR2)
    server.saw("serves, leaving")
    successor = int(server.saw(r"the successor pid=(\d+) serves")[0][1])
    assert server.wait() == 0
    assert get(server)
    os.kill(successor, signal.SIGQUIT)
    server.saw(f"pid={successor} stopped")


@pytest.mark.parametrize("verb", [["status"], ["stacks"], ["scale", "3"], ["reload"], ["stop"]])
def test_without_pidfds_every_verb_works(
    verb: list[str], serving: Callable[..., Server], start: Starter
) -> None:
    server = serving((), "app", "--bind", "127.0.0.1:0", "--pid-path", "x.pid").ready()
    server.all_ready(2)
    calls = ("pidfd_open=ENOSYS", "pidfd_send_signal=ENOSYS")
    words = [*calls, "--", "-m", "prefork_server", *verb, "x.pid"]
    asked = start.script(SECCOMP, *words, executed=True, env=unmeasured())
    assert asked.wait() == 0, asked.log


# Shared memory, event polls


@pytest.mark.parametrize("call", ["memfd_create", "epoll_create1"])
@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_what_has_no_replacement_is_a_sentence_and_exit_code_3(
    call: str, options: tuple[str, ...], serving: Callable[..., Server]
) -> None:
    server = serving((f"{call}=ENOSYS",), "app", "--bind", "127.0.0.1:0", *options)
    assert server.wait() == 3
    last = server.lines[-1]
    assert last.startswith("prefork-server: the system refuses what a server needs: ")
    assert last.endswith("Function not implemented (the kernel or its sandbox has no such call)")
    assert "Traceback" not in server.log


def test_without_a_list_of_its_cpus_it_serves_and_reloads(
    serving: Callable[..., Server],
) -> None:
    server = serving(("sched_getaffinity=EPERM",), "app", "--bind", "127.0.0.1:0").ready()
    first = get(server)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    eventually(lambda: get(server) != first)  # an old worker may still accept


def test_what_a_worker_lacks_before_any_code_of_the_program_runs_is_told(start: Starter) -> None:
    server = start(
        """
        import resource

        def few():
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, free + 1))

        os.register_at_fork(after_in_child=few)
        serve(Echo, workers=1)
        """,
        env=unmeasured(),
    )
    server.expect_error("reaped before it was ready", "Traceback")
    assert server.wait() == 1
    assert "giving up: OSError: [Errno 24] Too many open files" in server.log


def test_a_python_that_was_built_without_memfd_create_finds_it_in_the_c_library(
    start: Starter,
) -> None:
    """As the builds of uv and conda are, for C libraries of 2.17."""
    server = start(
        """
        import fcntl
        del os.memfd_create, os.pidfd_open, signal.pidfd_send_signal
        for name in [name for name in vars(fcntl) if "SEAL" in name]:
            delattr(fcntl, name)
        serve(Echo, workers=2)
        """,
        executed=True,
    ).ready()
    assert server.ask(b"hello") == b"hello"
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")


# Address families


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (10, ("app", "--bind", "[::]:0")),
        (10, ("app", "--bind", "127.0.0.1:0", "--bind", "[::1]:0")),
        (10, ("app", "--bind", "127.0.0.1:0", "--status", "[::1]:0")),
        (1, ("app", "--bind", "unix:x.sock")),
        (1, ("app", "--bind", "127.0.0.1:0", "--status", "unix:y.sock")),
    ],
)
def test_an_address_of_a_family_that_is_missing_is_a_sentence_and_exit_code_3(
    family: int, options: tuple[str, ...], serving: Callable[..., Server]
) -> None:
    server = serving((f"socket:{family}=EAFNOSUPPORT",), *options)
    assert server.wait() == 3
    last = server.lines[-1]
    assert re.match(r"prefork-server: cannot listen on (\[::1?\]:0|unix:[xy]\.sock): ", last)
    assert "the kernel or its sandbox has no such sockets" in last
    assert "Traceback" not in server.log


def test_without_unix_sockets_tcp_is_served_and_the_init_system_is_told_nothing(
    serving: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``RestrictAddressFamilies=AF_INET AF_INET6`` of a unit."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    server = serving(("socket:1=EAFNOSUPPORT",), "app", "--bind", "127.0.0.1:0").ready()
    assert get(server)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")


def test_in_a_program_a_family_that_is_missing_is_a_bind_error(start: Starter) -> None:
    program = """
    sys.path.insert(0, {root!r})
    from tests.seccomp import refuse
    from prefork_server.aio import PreforkAsyncioServer
    refuse("socket:10=EAFNOSUPPORT", "socket:1=EAFNOSUPPORT")
    for make in (
        lambda: PreforkTCPServer(("::1", 0), Echo),
        lambda: PreforkTCPServer(["127.0.0.1:0", "[::1]:0"], Echo),
        lambda: PreforkUDPServer(("::1", 0), Echo),
        lambda: PreforkUnixStreamServer("x.sock", Echo),
        lambda: PreforkAsyncioServer("[::1]:0", print),
        lambda: Preforker(print, listen="[::1]:0", pid_path=None).run(),
    ):
        try:
            make()
        except BindError as error:
            print(error.address, error)
    """
    server = start(program.format(root=str(ROOT)), executed=True)
    assert server.wait() == 0
    assert server.count(r"^(\[::1\]:0|unix:x\.sock) cannot listen on .*no such sockets") == 6


# Files


@pytest.mark.parametrize("error", ["EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM"])
def test_a_file_that_the_kernel_does_not_send_is_read_and_written(
    error: str, serving: Callable[..., Server]
) -> None:
    server = serving((f"sendfile={error}",), "app:file", "--bind", "127.0.0.1:0").ready()
    assert get(server) == (b"0123456789abcdef" * 20_000)[7:]


def test_in_a_handler_it_is_read_and_written_from_where_and_as_far_as_was_asked(
    start: Starter,
) -> None:
    server = start(
        f"""
        sys.path.insert(0, {str(ROOT)!r})
        from tests.seccomp import refuse
        refuse("sendfile=EINVAL")

        class Sender(socketserver.BaseRequestHandler):
            def handle(self):
                with open(__file__, "rb") as file:
                    sent = self.request.sendfile(file, 10, 1000)
                    self.request.sendall(b"|%d %d" % (sent, file.tell()))

        serve(Sender)
        """,
        executed=True,
    ).ready()
    text = (start.directory / "app0.py").read_bytes()
    sent = min(1000, len(text) - 10)
    assert server.ask() == text[10:1010] + b"|%d %d" % (sent, sent + 10)


# Modules and file systems


def test_without_ctypes_it_serves_and_shows_no_title(start: Starter) -> None:
    """A Python that was built without libffi."""
    server = start(
        """
        sys.modules["_ctypes"] = sys.modules["ctypes"] = None
        serve(Echo, workers=2)
        """,
        executed=True,
    ).ready()
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0


CHROOT = """
class Fate(Echo):
    def handle(self):
        word = self.request.recv(100)
        if word == b"raise":
            raise ValueError("of the handler")
        if word == b"hang":
            time.sleep(100)
        if word == b"abort":
            os.abort()
        self.request.sendall(b"%d" % os.getpid())

server = PreforkTCPServer(("127.0.0.1", 0), Fate, workers=2, timeout=1, **{keywords})
os.chroot({jail!r})
os.chdir("/")
{then}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot")
def test_in_an_empty_root_directory_it_serves_supervises_and_reports(
    start: Starter, tmp_path: Path
) -> None:
    """No /proc, no /dev/null, no module of Python that is not loaded yet."""
    jail = tmp_path / "jail"
    jail.mkdir()
    then = "server.serve_forever()"
    server = start(CHROOT.format(jail=str(jail), then=then, keywords="{}"), executed=True)
    server.ready()
    server.expect_error(
        *("handler failed", "ValueError", "Traceback", "of the handler"),
        *("silent for more", "killed by SIG"),
    )
    assert int(server.ask(b"hello")) != server.pid
    assert server.ask(b"raise") == b""
    server.saw("ValueError: of the handler")
    for number in (1, 2):
        assert server.ask(b"abort") == b""
        server.saw(r"reaped: killed by SIGABRT", times=number)
    server.saw("Fatal Python error: Aborted")
    assert server.ask(b"hang") == b""
    server.saw("silent for more than 1s at .*app0.py:.* in handle, killing")
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert server.quit() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot")
def test_in_an_empty_root_directory_workers_end_when_their_master_is_killed(
    start: Starter, tmp_path: Path
) -> None:
    jail = tmp_path / "jail"
    jail.mkdir()
    then = "server.serve_forever()"
    server = start(CHROOT.format(jail=str(jail), then=then, keywords="{}"), executed=True)
    server.ready().saw("worker=2 pid=.* forked")
    pids = {int(server.ask(b"hello")) for _ in range(20)}
    assert server.pid not in pids
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert not server.anyone_left()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot")
def test_in_an_empty_root_directory_it_becomes_a_daemon(start: Starter, tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    jail.mkdir()
    then = 'print("daemon", server.start())'
    server = start(
        CHROOT.format(jail=str(jail), then=then, keywords='{"log_path": "/log"}'),
        executed=True,
        env=unmeasured(),  # in there coverage finds its file no more
    )
    pid = int(server.saw(r"daemon (\d+)")[0][1])
    try:
        assert server.wait() == 0
        log = jail / "log"
        eventually(lambda: "ready, listening" in log.read_text())
        assert list(jail.iterdir()) == [log]
    finally:
        os.kill(pid, signal.SIGQUIT)


# Limits


@pytest.mark.parametrize("limit", [7, 9, 11])
def test_too_few_descriptors_are_a_sentence_and_exit_code_3(limit: int, start: Starter) -> None:
    start.directory.joinpath("app.py").write_text(APPLICATION)
    words = ["-m", "prefork_server", "serve", "app", "--bind", "127.0.0.1:0"]
    script = start.directory / "limited.py"
    script.write_text(
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        f"os.execv(sys.executable, [sys.executable, *{words}])\n"
    )
    server = start.script(script, executed=True, env=unmeasured())
    assert server.wait() == 3, server.log
    assert server.lines[-1].endswith(
        "Too many open files (raise the limit of open files, ulimit -n)"
    )
    assert "Traceback" not in server.log


def test_a_small_limit_of_file_sizes_is_a_sentence_and_exit_code_3(start: Starter) -> None:
    start.directory.joinpath("app.py").write_text(APPLICATION)
    words = ["-m", "prefork_server", "serve", "app", "--bind", "127.0.0.1:0"]
    script = start.directory / "limited.py"
    script.write_text(
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"os.execv(sys.executable, [sys.executable, *{words}])\n"
    )
    server = start.script(script, executed=True, env=unmeasured())
    assert server.wait() == 3, server.log
    assert server.lines[-1].endswith("(raise the limit of the size of files, ulimit -f)")
