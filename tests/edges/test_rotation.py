"""Logs that are renamed and opened anew, and a log that nobody can write to."""

import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

import pytest

from prefork_server.logfiles import LogFile, guarded, reopen, speaking
from tests.conftest import Server, Starter, eventually

# Each request writes one line to the log, one to stdout and one to a file of the program's own.
WRITER = """
    import logging

    own = logging.FileHandler("own")
    logging.getLogger("own").addHandler(own)
    logging.getLogger("own").setLevel(logging.INFO)

    class Write(socketserver.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                word = line.decode().strip() + " " + "x" * 300
                current_master().logger.info("request %s", word)
                logging.getLogger("own").info("request %s", word)
                sys.stdout.write(f"request {word}\\n")
                self.wfile.write(line)
"""
FILES = ("log", "own", "out")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def served(server: Server, word: str) -> None:
    with server.connect() as client:
        client.sendall(word.encode() + b"\n")
        assert client.recv(100) == word.encode() + b"\n"


def start_writer(start: Starter, workers: int, user: str | None = None) -> Server:
    server = start(f"""{WRITER}
    class Server(PreforkTCPServer):
        def ready(self, addresses):
            os.write(2, f"ready, listening on {{addresses[0]}}\\n".encode())

    serve(Write, Server, workers={workers}, log_path="log", stdout_path="out", user={user!r})
    """)
    server.saw("^ready, listening on")
    return server


@pytest.mark.parametrize("user", [None, pytest.param("nobody", marks=as_root)])
def test_twenty_rotations_by_eight_workers_lose_and_tear_no_line(
    start: Starter, open_path: Path, user: str | None
) -> None:
    tmp_path = start.directory = open_path
    server = start_writer(start, workers=8, user=user)
    over = threading.Event()
    words: list[str] = []

    def hammer(name: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            served(server, f"{name}-{number}")
            words.append(f"{name}-{number}")

    hammers = [threading.Thread(target=hammer, args=(n,)) for n in range(8)]
    for each in hammers:
        each.start()
    try:
        for number in range(1, 21):
            sizes = {}
            for name in FILES:
                os.rename(tmp_path / name, tmp_path / f"{name}.{number}")
            server.signal(signal.SIGUSR1)
            done = f"rotation {number} done: nobody writes to the old files"
            log = tmp_path / "log"
            eventually(lambda log=log, done=done: log.exists() and done in log.read_text())  # type: ignore[misc]
            sizes = {name: (tmp_path / f"{name}.{number}").stat().st_size for name in FILES}
            served(server, f"after-{number}")
            words.append(f"after-{number}")
            for name, size in sizes.items():
                assert (tmp_path / f"{name}.{number}").stat().st_size == size, "it said done"
    finally:
        over.set()
        for each in hammers:
            each.join()
    assert server.quit() == 0
    assert len(words) > 100
    for name in FILES:
        lines = "".join(path.read_text() for path in tmp_path.glob(f"{name}*")).splitlines()
        requests = [line for line in lines if "request " in line]
        assert sorted(line.split("request ")[1].split()[0] for line in requests) == sorted(words)
        assert all(line.endswith(" " + "x" * 300) for line in requests), "torn"


def test_the_end_of_a_rotation_is_when_the_last_request_is_done(
    start: Starter, tmp_path: Path
) -> None:
    server = start_writer(start, workers=2)
    with server.connect() as client:
        client.sendall(b"long\n")
        assert client.recv(100) == b"long\n"  # its handler waits for more
        os.rename(tmp_path / "log", tmp_path / "log.1")
        server.signal(signal.SIGUSR1)
        log = tmp_path / "log"
        eventually(lambda: log.exists() and "rotation 1, logs reopened" in log.read_text())
        client.sendall(b"still\n")
        assert client.recv(100) == b"still\n"
        assert "request still" in (tmp_path / "log.1").read_text()
        assert "rotation 1 done" not in log.read_text()
    eventually(lambda: "rotation 1 done" in log.read_text())


def test_a_loop_of_ones_own_follows_when_it_asks(start: Starter, tmp_path: Path) -> None:
    server = start("""
        def work(master):
            while master.wait(100):
                pass

        def ready(addresses):
            os.write(2, b"up\\n")

        Preforker(work, workers=3, log_path="log", pid_path=None, ready=ready).run()
    """)
    server.saw("^up$")
    os.rename(tmp_path / "log", tmp_path / "log.1")
    server.signal(signal.SIGUSR1)
    eventually((tmp_path / "log").exists)
    eventually(lambda: "rotation 1 done" in (tmp_path / "log").read_text())


def test_workers_that_run_a_loop_follow_too(start: Starter, tmp_path: Path) -> None:
    server = start("""
        from prefork_server import PreforkAsyncioServer

        async def word(reader, writer):
            current_master().logger.info("request %s", (await reader.readline()).decode().strip())
            writer.write(b"done")
            writer.close()

        class Server(PreforkAsyncioServer):
            def ready(self, addresses):
                os.write(2, f"ready, listening on {addresses[0]}\\n".encode())

        Server("127.0.0.1:0", word, workers=2, log_path="log").serve_forever()
    """)
    server.saw("^ready, listening on")
    assert server.ask(b"first\n") == b"done"
    os.rename(tmp_path / "log", tmp_path / "log.1")
    server.signal(signal.SIGUSR1)
    log = tmp_path / "log"
    eventually(lambda: log.exists() and "rotation 1 done" in log.read_text())
    assert server.ask(b"second\n") == b"done"
    assert "request second" in log.read_text()
    assert "request first" in (tmp_path / "log.1").read_text()


def test_what_cannot_be_opened_anew_is_written_to_as_before(start: Starter, tmp_path: Path) -> None:
    server = start_writer(start, workers=2)
    for name in FILES:
        os.rename(tmp_path / name, tmp_path / f"{name}.1")
        (tmp_path / name).mkdir()
    server.signal(signal.SIGUSR1)
    old = tmp_path / "log.1"
    failed = "rotation 1 failed: old files are kept by 2 of 2 workers, and by the master"
    eventually(lambda: failed in old.read_text())
    assert "rotation 1 done" not in old.read_text()
    served(server, "word")
    for name in FILES:
        assert "request word" in (tmp_path / f"{name}.1").read_text()
        # By the master, and by both workers.
        eventually(lambda name=name: old.read_text().count(f"/{name}: Is a directory") == 3)  # type: ignore[misc]
    for name in FILES:
        (tmp_path / name).rmdir()
    server.signal(signal.SIGUSR1)
    eventually((tmp_path / "log").is_file)
    eventually(lambda: "rotation 2 done" in (tmp_path / "log").read_text())


def test_a_file_that_was_new_at_the_start_is_not_emptied(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log", mode="w")
    try:
        handler.emit(logging.makeLogRecord({"msg": "first"}))
        assert reopen() == []
        handler.emit(logging.makeLogRecord({"msg": "second"}))
    finally:
        handler.close()
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@as_root
def test_who_may_not_open_the_new_file_has_not_followed(start: Starter, open_path: Path) -> None:
    start.directory = open_path
    server = start_writer(start, workers=3, user="nobody")
    log, old = open_path / "log", open_path / "log.1"
    os.rename(log, old)
    log.write_text("somebody was faster, and this is not for the workers\n")
    server.signal(signal.SIGUSR1)
    eventually(lambda: "rotation 1 failed: old files are kept by 3 of 3 workers" in log.read_text())
    assert "and by the master" not in log.read_text()
    assert old.read_text().count("keeps the old file: log_path") == 3
    assert log.stat().st_uid == 0
    served(server, "word")
    assert "request word" in old.read_text()
    log.unlink()
    server.signal(signal.SIGUSR1)
    eventually(lambda: log.exists() and "rotation 2 done" in log.read_text())
    served(server, "another")
    assert "request another" in log.read_text()


@as_root
@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_a_link_that_a_user_has_planted_gives_him_nothing(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch()
    handler = logging.FileHandler(tmp_path / "own")  # which follows links, unlike our own files
    given: list[int] = []
    try:
        os.rename(tmp_path / "own", tmp_path / "own.1")
        plant(theirs, tmp_path / "own")
        (failure,) = reopen(given.append)
        assert failure.startswith(f"{tmp_path}/own: ")
        assert given == []
        handler.emit(logging.makeLogRecord({"msg": "word"}))
        assert not theirs.read_text() and (tmp_path / "own.1").read_text() == "word\n"
        os.unlink(tmp_path / "own")
        assert reopen(given.append) == []
        assert len(given) == 1
    finally:
        handler.close()


def test_a_file_that_cannot_be_given_is_not_used(tmp_path: Path) -> None:
    def give(fd: int) -> None:
        raise PermissionError(1, "not on this file system")

    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    try:
        os.rename(path, tmp_path / "log.1")
        assert reopen(give) == [f"{path}: not on this file system"]
        handler.emit(logging.makeLogRecord({"msg": "still here"}))
        assert (tmp_path / "log.1").read_text() == "still here\n"
    finally:
        handler.close()


def test_what_nobody_has_renamed_need_not_be_opened_again(tmp_path: Path) -> None:
    """As by a worker that may not: a file that was there before the server is its owner's."""

    class Closed(logging.FileHandler):
        def _open(self) -> Any:
            if opened:
                raise PermissionError(13, "Permission denied")
            return super()._open()

    opened: list[int] = []
    handler = Closed(tmp_path / "log")
    opened.append(1)
    try:
        assert reopen() == []
        os.rename(tmp_path / "log", tmp_path / "log.1")
        assert reopen() == [f"{tmp_path}/log: Permission denied"]
    finally:
        handler.close()


@pytest.mark.parametrize("kind", [RotatingFileHandler, WatchedFileHandler])
@pytest.mark.parametrize("delay", [False, True])
def test_the_handlers_of_the_standard_library_follow(
    tmp_path: Path, kind: type[logging.FileHandler], delay: bool
) -> None:
    path = tmp_path / "log"
    handler = kind(path, delay=delay)
    try:
        for name in ("one", "two", "three"):
            handler.emit(logging.makeLogRecord({"msg": name}))
            os.rename(path, tmp_path / name)
            assert reopen() == []
        assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == [
            *("one\n", "two\n", "three\n")
        ]
    finally:
        handler.close()


@pytest.mark.parametrize("error", [RuntimeError("no key yet"), KeyError("key"), OSError(5, "I/O")])
def test_a_handler_that_cannot_open_keeps_the_old_file_and_the_others_follow(
    tmp_path: Path, error: Exception
) -> None:
    class Own(logging.FileHandler):
        def _open(self) -> Any:
            if broken:
                raise error
            return super()._open()

    broken: list[bool] = []
    own, other = Own(tmp_path / "own"), logging.FileHandler(tmp_path / "other")
    try:
        broken.append(True)
        for name in ("own", "other"):
            os.rename(tmp_path / name, tmp_path / f"{name}.1")
        (failure,) = reopen()
        assert failure.startswith(f"{tmp_path}/own: ")
        for handler in (own, other):
            handler.emit(logging.makeLogRecord({"msg": "word"}))
        assert (tmp_path / "own.1").read_text() == "word\n"
        assert (tmp_path / "other").read_text() == "word\n"
        broken.clear()
        assert reopen() == []
        assert (tmp_path / "own").exists()
    finally:
        own.close()
        other.close()


def test_a_handler_of_ones_own_that_fails_ends_neither_master_nor_worker(
    start: Starter, tmp_path: Path
) -> None:
    server = start("""
        import logging

        class Own(logging.FileHandler):
            def _open(self):
                if os.path.exists("broken"):
                    raise RuntimeError("no key yet")
                return super()._open()

        logging.getLogger("own").addHandler(Own("own"))
        serve(Echo, workers=2)
    """).all_ready(2)
    before = server.workers()
    server.expect_error("keeps the old file: .*/own: RuntimeError", "rotation 1 failed")
    (tmp_path / "broken").touch()
    os.rename(tmp_path / "own", tmp_path / "own.1")
    server.signal(signal.SIGUSR1)
    server.saw("rotation 1 failed: old files are kept by 2 of 2 workers, and by the master")
    assert server.workers() == before
    (tmp_path / "broken").unlink()
    server.signal(signal.SIGUSR1)
    server.saw("rotation 2 done: nobody writes to the old files")
    assert (tmp_path / "own").exists()


def test_without_a_user_the_files_of_the_program_are_its_own(tmp_path: Path) -> None:
    class Dated(logging.FileHandler):
        def _open(self) -> Any:
            return open(f"{self.baseFilename}-2026", "a")

    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    linked, dated = logging.FileHandler(tmp_path / "link"), Dated(tmp_path / "dated")
    try:
        (tmp_path / "real").rename(tmp_path / "real.1")
        assert reopen() == []
        linked.stream.write("new")
        linked.flush()
        assert (tmp_path / "real").read_text() == "new"
        assert sorted(each.name for each in tmp_path.iterdir()) == [
            *("dated-2026", "link", "real", "real.1")
        ]
    finally:
        linked.close()
        dated.close()


def test_after_a_rotation_with_a_user_no_process_holds_the_old_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    try:
        with guarded([os.getuid()]):
            path.rename(tmp_path / "old")
            assert reopen() == []
            links = []
            for fd in os.listdir("/proc/self/fd"):
                with suppress(FileNotFoundError):  # the one of listdir() itself
                    links.append(os.readlink(f"/proc/self/fd/{fd}"))
            assert str(path) in links and str(tmp_path / "old") not in links
    finally:
        handler.close()


def test_one_that_waits_for_its_first_line_is_left_to_wait(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    assert reopen() == []
    assert not (tmp_path / "log").exists()
    handler.close()


# A log that cannot be written


def test_a_full_disk_costs_lines_and_nothing_else(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def ready(self, addresses):
                print(f"ready, listening on {addresses[0]}")

        serve(Echo, Server, workers=2, log_path="/dev/full", timeout=1)
    """)
    server.saw("^ready, listening on")
    server.signal(signal.SIGKILL, server.workers()[0])
    eventually(lambda: len(server.workers()) == 2)
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0
    assert server.count("Traceback") == 0


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_master(start: Starter) -> None:
    server = start("""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        os.dup2(writer, 2)

        class Server(PreforkTCPServer):
            def ready(self, addresses):
                print(f"ready, listening on {addresses[0]}")

        serve(Echo, Server, workers=2)
    """)
    server.saw("^ready, listening on")
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(start: Starter) -> None:
    server = start("""
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)

        class Server(PreforkTCPServer):
            def ready(self, addresses):
                print(f"ready, listening on {addresses[0]}")

        serve(Echo, Server, workers=2)
    """)
    server.saw("^ready, listening on")
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0


def test_lines_that_were_lost_are_counted_when_there_is_room_again(tmp_path: Path) -> None:
    logger = logging.getLogger("test_rotation_1")
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with speaking(logger, path):
        logger.info("one")
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            logger.info("two")
            logger.info("three")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        logger.info("four")
        logger.info("five")
    said = path.read_text()
    assert "two" not in said and "three" not in said
    assert said.count("(2 lines of the log were lost)\n") == 1
    assert said.index("lines of the log") < said.index("four") < said.index("five")


def test_a_long_line_goes_in_pieces_and_whole(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        handler = LogFile(f"/dev/fd/{ours.fileno()}")
        text = "x" * 20_000
        handler.emit(logging.makeLogRecord({"msg": text}))
        handler.close()
        ours.close()
        with theirs.makefile("rb") as said:
            assert said.read() == text.encode() + b"\n"


def test_a_message_that_cannot_be_made_is_told_as_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = LogFile(tmp_path / "log")
    handler.emit(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    handler.close()
    assert "Logging error" in capsys.readouterr().err
