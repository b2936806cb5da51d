"""What the master takes from the process that has imported the target, which may be hostile."""

import json
import mmap
import os
from typing import Any

import pytest

from prefork_server import BootError, ConfigError, Settings
from prefork_server.cli import answer, exit_code
from prefork_server.cli.options import Misuse
from prefork_server.cli.target import LoadError

GOOD: dict[str, Any] = {
    "words": "app:Server, a server class",
    "kind": "server",
    "datagram": False,
    "settings": {"workers": 3},
    "alpn": None,
    "loops": False,
    "modules": ["ssl", "os"],
}


def read(raw: bytes) -> answer.Told:
    paper = answer.new_paper()
    try:
        os.pwrite(paper, raw, 0)
        return answer.read(paper, "exit code 0")
    finally:
        os.close(paper)


def test_an_answer_is_read_with_known_values_alone() -> None:
    told = read(json.dumps({**GOOD, "certfile": "/etc/shadow"}).encode())
    assert told == {**GOOD, "modules": ["ssl"]}


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 500_000,
        b'{"a":' * 500_000,
        b"9" * 100_000,
        b'{"error": 7}',
        b'{"misuse": ["x"]}',
        b'{"error": "x", "report": {}}',
        *(
            json.dumps({**GOOD, **wrong}).encode()
            for wrong in (
                {"kind": "master"},
                {"kind": ["server"]},
                {"kind": "wsgi"},  # which says what it offers over TLS
                {"alpn": ["http/1.1"]},
                {"kind": "wsgi", "alpn": ["h2"]},
                {"kind": "wsgi", "alpn": ["http/1.1"] * 1000},
                {"kind": "wsgi", "alpn": "http/1.1"},
                {"datagram": 1},
                {"loops": "yes"},
                {"words": None},
                {"settings": [["workers", 3]]},
                {"settings": {"workers": [3]}},
                {"settings": {"workers": 1 << 70}},
                {"modules": 5},
            )
        ),
    ],
)
def test_what_is_no_answer_is_an_error_of_one_line(raw: bytes) -> None:
    with pytest.raises(LoadError, match=r"^[ -~]*no answer that can be read[ -~]*$"):
        read(raw)


def test_no_answer_says_how_the_process_ended() -> None:
    with pytest.raises(LoadError, match="was to load the target ended: exit code 0"):
        read(b"")


def test_the_memory_of_an_answer_can_neither_grow_nor_be_cut() -> None:
    paper = answer.new_paper()
    try:
        for size in (0, 1, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(paper, size)
        with pytest.raises(PermissionError):
            os.pwrite(paper, b"x", 1 << 40)
        with mmap.mmap(paper, 0) as whole:
            whole[:] = b"[" * len(whole)
        with pytest.raises(LoadError):
            answer.read(paper, "exit code 0")
    finally:
        os.close(paper)


HOSTILE = "a\x1b[2Jb\n12:00:00.000 INFO    master pid=1 ready\u202e\ud800\x9b\r"


def test_a_message_is_one_clean_line_and_cut() -> None:
    words = read(json.dumps({**GOOD, "words": HOSTILE + "x" * 9000}).encode())["words"]
    assert words.isprintable() and len(words) < 1100
    for key, kind in (("misuse", Misuse), ("error", LoadError)):
        with pytest.raises(kind) as caught:
            read(json.dumps({key: HOSTILE}).encode())
        assert str(caught.value).isprintable()


def test_the_exit_code_is_not_the_targets_to_choose() -> None:
    assert exit_code(LoadError("already running: pid 1 holds /run/x")) == 3
    assert exit_code(BootError("already running: pid 1 holds /run/x")) == 4


def taken(settings: dict[str, Any], trusted: bool = False, **said: Any) -> dict[str, Any]:
    known = Settings(term="graceful", **said)
    return answer.taken({**GOOD, "settings": settings}, known, said, trusted)


def test_numbers_are_taken_from_a_target_within_their_bounds() -> None:
    numbers = {"workers": 3, "timeout": 2.5, "client_timeout": None, "gc_freeze": False}
    assert taken(numbers) == numbers
    for wrong in ({"workers": True}, {"workers": 99999}, {"timeout": float("nan")}):
        with pytest.raises(ConfigError):
            Settings(**taken(wrong))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("log_path", "/etc/shadow"), ("pid_path", "x"), ("stdout_path", "x")),
        *(("stderr_path", "x"), ("user", 0), ("group", "root"), ("umask", 0), ("term", "now")),
        *(("status", "unix:/x"), ("status_public", True), ("app_name", "sshd"), ("inline", True)),
        ("_said", 1),
    ],
)
def test_a_path_an_identity_and_an_address_are_refused_from_a_target(name: str, value: Any) -> None:
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(Misuse, match=f"names {name}={value!r}: .* use {option} instead$"):
        taken({"workers": 2, name: value})
    assert taken({name: value}, trusted=True) == {name: value}


def test_a_setting_that_an_option_says_or_that_changes_nothing_is_not_refused() -> None:
    assert taken({"log_path": "/etc/shadow", "workers": 2}, log_path="mine") == {"workers": 2}
    assert taken({"log_path": None, "app_name": "", "umask": None}) == {}
