"""The words of the command where they name a descriptor or a class."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from prefork_server import (
    ConfigError,
    PreforkTCPServer,
)
from prefork_server.cli.options import Misuse
from prefork_server.cli.recipe import Recipe
from prefork_server.cli.serve import binds
from tests.unit.test_cli import HTTP, Datagrams, Loops, Plain, Stream, connected, made, work

# Addresses


def test_an_inherited_descriptor_must_be_a_socket_that_listens(tmp_path: Path) -> None:
    with (
        open(tmp_path / "x", "w") as file,
        pytest.raises(Misuse, match=f"fd://{file.fileno()} is no socket"),
    ):
        binds([f"fd://{file.fileno()}"])
    with socket.socket() as deaf:
        with pytest.raises(Misuse, match="is a socket that does not listen"):
            binds([f"fd://{deaf.fileno()}"])
        assert deaf.fileno() >= 0
        os.fstat(deaf.fileno())  # and it was not closed
    with socket.create_server(("127.0.0.1", 0)) as listening:
        (bind,) = binds([f"fd://{listening.fileno()}"])
        assert (bind.fd, bind.udp) == (listening.fileno(), False)
        with pytest.raises(Misuse, match="each socket may be given once"):
            binds([bind.text, bind.text])


# What it is


def test_what_no_loop_can_serve_is_told_with_the_rule() -> None:
    for streams in (connected, Stream, Loops):
        with pytest.raises(Misuse, match="wants streams, and an address is for udp:"):
            made(streams, udp=True)
    with pytest.raises(Misuse, match="--loop is nothing for PreforkTCPServer"):
        made(Plain, loop="asyncio")
    with pytest.raises(ConfigError, match="worker_connections must be a whole number, 1 or more"):
        made(connected, worker_connections=0).try_out()
    with pytest.raises(Misuse, match=r"no subclass of asyncio\.BaseProtocol: --as protocol"):
        made(connected, "protocol")
    with Loops("127.0.0.1:0") as server, pytest.raises(Misuse, match="an address of its own"):
        made(server)


def test_what_our_own_classes_refuse_is_known_before_anything_is_bound() -> None:
    class Picky(PreforkTCPServer):
        def __init__(self, *args: Any, access_log: str) -> None:
            if access_log != "right":
                raise ConfigError(f"access_log {access_log}: No such file or directory")
            super().__init__(*args)
            assert self.socket.getsockname()[1] == 0

    Recipe("x", "handler", Picky, Plain, {"access_log": "right"}).try_out()
    with pytest.raises(ConfigError, match="access_log wrong: No such file"):
        Recipe("x", "handler", Picky, Plain, {"access_log": "wrong"}).try_out()
    Recipe("x", "server", Picky, Plain, {"access_log": "wrong"}).try_out()  # is a user's
    made(Datagrams).try_out()
    made(HTTP).try_out()
    made(work).try_out()
