"""Addresses are checked, UNIX sockets are never stolen, and a shut door keeps who is inside."""

import errno
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from prefork_server import BindError
from prefork_server.listeners import (
    Address,
    Listener,
    adopt,
    listen,
    parse,
    parse_all,
    tcp_address,
    unix_address,
)
from tests.hammer import ask_once


def test_the_address_tells_the_port_that_was_given_for_0() -> None:
    with listen(tcp_address(("127.0.0.1", 0))).socket as sock:
        assert sock.getsockname()[1] != 0


needs_ipv6 = pytest.mark.skipif(
    not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(),
    reason="this machine has no IPv6",
)


@needs_ipv6
def test_an_ipv6_address_is_listened_on() -> None:
    listener = listen(parse("[::1]:0"))
    assert listener.address.startswith("[::1]:")
    listener.close()


@needs_ipv6
def test_all_ipv4_and_all_ipv6_addresses_can_be_had_together() -> None:
    first = listen(parse("0.0.0.0:0"))
    port = first.socket.getsockname()[1]
    _, second = parse_all([f"0.0.0.0:{port}", f"[::]:{port}"])
    listen(second).close()
    first.close()


@needs_ipv6
def test_all_ipv6_addresses_alone_are_the_ipv4_ones_too() -> None:
    listener = listen(*parse_all("[::]:0"))
    socket.create_connection(("127.0.0.1", listener.socket.getsockname()[1])).close()
    listener.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (("192.0.2.1", 0), "cannot listen on 192.0.2.1:0: .*this machine has no such address"),
        (("no.such.host.invalid", 0), "cannot listen on no.such.host.invalid:0: "),
    ],
)
def test_an_address_that_is_not_ours_is_a_bind_error(
    address: tuple[str, int], message: str
) -> None:
    with pytest.raises(BindError, match=message) as error:
        listen(tcp_address(address))
    assert isinstance(error.value, OSError) and error.value.errno == error.value.reason.errno


def test_an_address_in_use_is_a_bind_error_with_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prefork_server.listeners._PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            BindError, match=rf"127\.0\.0\.1:{port}: Address already in use \(is an"
        ):
            listen(tcp_address(("127.0.0.1", port)))


def test_an_address_that_becomes_free_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("prefork_server.listeners.time.sleep", lambda seconds: other.close())
    address = tcp_address(other.getsockname())
    listener = listen(address)
    assert caplog.messages == [f"{address} is in use, trying for 2s"]
    listener.close()


# Paths


def test_a_unix_socket_is_private_from_its_first_moment(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        listener = listen(unix_address(tmp_path / "s"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    listener.close()
    assert not (tmp_path / "s").exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    listen(unix_address(tmp_path / "s")).close()


def test_a_live_server_keeps_its_socket(tmp_path: Path) -> None:
    live = listen(unix_address(tmp_path / "s"))
    with pytest.raises(BindError, match="a live server has it"):
        listen(unix_address(tmp_path / "s"))
    live.socket.listen(0)  # nor when its queue is full
    clients = []
    for _ in range(3):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        clients.append(client)
        client.connect_ex(str(tmp_path / "s"))
    with pytest.raises(BindError, match="a live server has it"):
        listen(unix_address(tmp_path / "s"))
    assert (tmp_path / "s").is_socket()
    live.close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, victim = tmp_path / "s", tmp_path / "victim"
    victim.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(victim)
    with pytest.raises(BindError, match="not a socket is there, and stays there"):
        listen(unix_address(path))
    assert path.exists() and victim.read_text() == "mine"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        BindError, match=r"No such file or directory \(the directory must be there\)"
    ):
        listen(unix_address(tmp_path / "no" / "s"))


def test_a_directory_without_locks_is_a_bind_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("prefork_server.lockfile.fcntl.flock", refuse)
    with pytest.raises(BindError, match=r"unix:.*/s: No locks available \(its directory must be"):
        listen(unix_address(tmp_path / "s"))


def test_a_path_in_a_directory_that_was_removed_is_a_bind_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(BindError, match="unix:s: No such file or directory"):
        listen(unix_address("s"))


def test_of_many_who_start_together_one_gets_the_path(tmp_path: Path) -> None:
    got: list[Listener] = []
    refused: list[BindError] = []

    def starter() -> None:
        try:
            got.append(listen(unix_address(tmp_path / "s")))
        except BindError as error:
            refused.append(error)

    threads = [threading.Thread(target=starter) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and {error.errno for error in refused} == {errno.EADDRINUSE}
    got[0].close()


def test_a_path_that_somebody_else_has_by_now_is_left_to_him(tmp_path: Path) -> None:
    ours = listen(unix_address(tmp_path / "s"))
    (tmp_path / "s").unlink()
    theirs = listen(unix_address(tmp_path / "s"))
    ours.close()
    assert (tmp_path / "s").is_socket()
    theirs.close()


def test_a_relative_path_is_removed_wherever_the_program_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listen(unix_address("s"))
    monkeypatch.chdir("/")
    listener.close()
    assert not (tmp_path / "s").exists()


def test_an_abstract_address_needs_no_file() -> None:
    name = f"@prefork-test-{os.getpid()}"
    listener = listen(parse(f"unix:{name}"))
    assert listener.address == f"unix:{name}"
    listener.close()


# The door


def _connected(address: Address) -> socket.socket:
    client = socket.socket(address.family)
    client.settimeout(5)
    client.connect(address.name)
    return client


@pytest.mark.parametrize("kind", ["tcp", "unix", "adopted", "no filter"])
def test_a_shut_door_keeps_who_waits_and_lets_nobody_else_in(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("tcp", "no filter"):
        listener = listen(tcp_address(("127.0.0.1", 0)))
    else:
        listener = listen(unix_address(tmp_path / "s"))
    if kind == "adopted":
        listener = adopt(listener.socket)
    if kind == "no filter":
        monkeypatch.setattr("prefork_server.listeners._SO_ATTACH_FILTER", 0xFFFF)
    address = Address(listener.socket.family, listener.socket.getsockname())
    waiting = [_connected(address) for _ in range(3)]
    assert listener.shut_the_door() is (kind in ("tcp", "unix"))
    listener.socket.setblocking(True)
    late = socket.socket(address.family)
    late.settimeout(0.2)
    with pytest.raises((TimeoutError, FileNotFoundError, BlockingIOError)), late:
        for _ in range(3):  # a backlog of 0 lets one more in
            late.connect(address.name)
            late.close()
            late = socket.socket(address.family)
            late.settimeout(0.2)
    for client in waiting:
        served, _ = listener.socket.accept()
        with served, client:
            served.sendall(b"served")
            assert client.recv(10) == b"served"
    listener.socket.close()
    if kind != "adopted":
        listener.close()
        assert ask_once(address.name, b"") == "refused"
