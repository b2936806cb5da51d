"""What is remembered of fields and heads, and how little of it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from prefork_server.http import environ, fields, forwarded, heads, wire
from prefork_server.http.memo import Memo
from prefork_server.http.wire import read_head, read_known


def text_in(memo: Memo[Any, Any]) -> int:
    """Characters of all keys."""
    keys: Iterable[Any] = memo
    return sum(
        sum(len(part) for part in key if isinstance(part, str))
        if isinstance(key, tuple)
        else len(key)
        for key in keys
    )


def test_a_memo_makes_once_and_forgets_all_when_it_is_full() -> None:
    made: list[str] = []

    def double(text: str) -> str:
        made.append(text)
        return text * 2

    memo = Memo(double, longest=10, room=4 * (256 + 10))
    assert [memo["a"], memo["a"], memo["x" * 11], memo["x" * 11]] == [
        "aa",
        "aa",
        "x" * 22,
        "x" * 22,
    ]
    assert made == ["a", "x" * 11, "x" * 11]
    for number in range(100):
        assert memo[f"{number:010}"] == f"{number:010}" * 2
        assert len(memo) <= 4
    assert memo["a"] == "aa" and made.count("a") == 2


def test_what_a_memo_cannot_make_is_not_remembered() -> None:
    memo = Memo(int)
    with pytest.raises(ValueError, match="invalid literal"):
        memo["a"]
    assert not memo and memo["1"] == 1


MEMOS: dict[str, tuple[Memo[Any, Any], Callable[[str], Any]]] = {
    "fields of answers": (heads.fields, lambda text: ("X", text)),
    "names of fields of answers": (heads.fields, lambda text: ("X" + text, "y")),
    "fields of applications": (environ.line_of, lambda text: ("X", text)),
    "status lines": (heads.status_line, lambda text: ("HTTP/1.1", 200, text)),
    "statuses of applications": (environ.status_of, lambda text: f"200 {text}"),
    "hosts": (fields._hosts, lambda text: text),
    "addresses of clients": (forwarded._addresses, lambda text: f"192.0.2.1:_{text}"),
    "fields of requests": (environ.told_by, lambda text: f"\nX: {text}\r\n"),
}


@pytest.mark.parametrize("size", [1, 200, 300, 5_000])
@pytest.mark.parametrize("what", MEMOS)
def test_what_clients_and_handlers_say_is_remembered_within_a_limit_of_bytes(
    what: str, size: int
) -> None:
    memo, key = MEMOS[what]
    longest = 4096 if what == "fields of requests" else 256
    memo.clear()
    for number in range(1100):
        memo[key(f"{number:07}" + "x" * size)]
    assert text_in(memo) <= 1 << 18 and len(memo) <= 1024
    assert bool(memo) == (size < longest)


def test_of_a_field_for_one_client_nothing_is_remembered() -> None:
    for memo in (heads.fields, environ.line_of):
        memo.clear()
        for name in ("Set-Cookie", "set-cookie"):
            assert memo[name, "a=secret"][0] == f"{name}: a=secret\r\n".encode()
        assert not memo


def test_names_of_fields_that_are_long_are_not_remembered() -> None:
    environ.key_of.cache_clear()
    environ.told_by.clear()
    for size in (100, 1000, 10_000):
        name = "X-" + "y" * size
        assert environ.told_by[f"\n{name}: z\r\n"] == {f"HTTP_X_{'Y' * size}": "z"}
    assert environ.key_of.cache_info().currsize == 1


@pytest.mark.parametrize("size", [1, 1000, 3500, 8000])
def test_heads_of_requests_are_remembered_within_a_limit_of_bytes(size: int) -> None:
    wire._known.clear()
    wire._asked.clear()
    for number in range(1000):
        rest = b"HTTP/1.1\r\nHost: h\r\nX: %04d%b\r\n\r\n" % (number, b"y" * size)
        read_head(b"GET / " + rest)
        assert (read_known(b"GET /other " + rest) is not None) == (size < 4000)
    for memo in (wire._known, wire._asked):
        assert text_in(memo) <= 1 << 18
