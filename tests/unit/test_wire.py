"""What is a request and what is none, and where each one ends: whole, in halves, byte by byte."""

import gc
import itertools
import json
import re
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork_server.http import wire
from prefork_server.http.wire import (
    LIMITS,
    Chunks,
    Limits,
    Reject,
    Request,
    check_field,
    check_reason,
    escape,
    find_head,
    read_head,
    read_known,
)
from tests.conftest import ROOT, soak
from tests.wire_reader import Story, bytes_of, read, story

CASES = json.loads((ROOT / "tests/http_cases.json").read_text())
HOST = b"Host: example.com\r\n"


def a_request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def a_post(*fields: bytes, version: bytes = b"1.1") -> bytes:
    return a_request(b"POST / HTTP/" + version, *fields)


def chunked(body: bytes, *fields: bytes) -> bytes:
    return a_post(b"Transfer-Encoding: chunked", *fields) + body


def head(raw: bytes) -> Request:
    assert find_head(raw) == len(raw)
    return read_head(raw)


def is_refused(raw: bytes, *statuses: int, limits: Limits | None = None) -> str:
    """In each way of arriving, with the same sentence, and without a request seen."""
    told = story(raw, limits)
    assert told.end in (statuses or (400,)), told
    assert not told.messages, told
    return told.reason


def is_taken(raw: bytes, limits: Limits | None = None) -> Story:
    told = story(raw, limits)
    assert told.end in ("idle", "closed"), told
    assert told.messages, told
    return told


# What a request says


def test_a_request_says_what_was_sent() -> None:
    request = head(a_request(b"GET /a?b=c HTTP/1.1", b"X-One:  1\t", b"x-one: 2", b"Empty:"))
    assert (request.method, request.target, request.path) == ("GET", "/a?b=c", "/a?b=c")
    assert request.version == (1, 1)
    assert (request.length, request.chunked, request.expects_continue) == (0, False, False)
    assert request.keep_alive
    assert request.raw_fields == HOST + b"X-One:  1\t\r\nx-one: 2\r\nEmpty:\r\n"
    assert request.fields == [
        ("Host", "example.com"),
        ("X-One", "1"),
        ("x-one", "2"),
        ("Empty", ""),
    ]
    assert request.get("host") == "example.com"
    assert request.get("x-one") == "1, 2"
    assert request.get("empty") == ""
    assert request.get("one") is None
    assert request.get("get /a?b=c http/1.1\r\nhost") is None


def test_a_field_whose_name_is_the_end_of_another_is_no_match() -> None:
    raw = a_request(b"GET /?host: HTTP/1.1", b"X-Host: b", b"A: host: c")
    assert head(raw).get("host") == "example.com"


def test_values_are_latin_1_and_lose_only_spaces_and_tabs() -> None:
    request = head(a_request(b"GET / HTTP/1.1", b"X: \t\xa0\xe9\x85\xff \t ", b"\x59: a\tb"))
    assert request.get("x") == "\xa0\xe9\x85\xff"
    assert request.get("y") == "a\tb"
    assert request.raw_fields.endswith(b"X: \t\xa0\xe9\x85\xff \t \r\nY: a\tb\r\n")


@pytest.mark.parametrize(
    ("version", "fields", "keeps"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: keep-alive"], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"Connection:close\t"], False),
        (b"1.1", [b"connection: foo , CLOSE"], False),
        (b"1.1", [b"Connection: keep-alive", b"Connection: close"], False),
        (b"1.1", [b"Connection: TE", b"X: y", b"Connection: x,close,y"], False),
        (b"1.1", [b"Connection: closed"], True),
        (b"1.1", [b"X-Connection: close", b"X: close"], True),
        (b"1.1", [b"Connection: upgrade", b"Upgrade: websocket"], False),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
        (b"1.0", [b"Connection:keep-alive"], True),
        (b"1.0", [b"Connection: x", b"Connection: keep-alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_a_connection_is_kept_by_version_and_all_options(
    version: bytes, fields: list[bytes], keeps: bool
) -> None:
    assert head(a_request(b"GET / HTTP/" + version, *fields)).keep_alive is keeps


def test_after_a_close_nothing_more_is_read() -> None:
    told = is_taken(a_request(b"GET / HTTP/1.1", b"Connection: close") + a_request())
    assert len(told.messages) == 1


def test_requests_in_a_row_are_read_one_by_one_up_to_the_first_that_is_none() -> None:
    good = a_request(b"POST /a HTTP/1.1", b"Content-Length: 3") + b"abc"
    told = story(good + good + a_request(b"GET / FTP/1.1") + good)
    assert [message.body for message in told.messages] == [b"abc", b"abc"]
    assert told.end == 400


def test_two_empty_lines_before_a_request_are_allowed_and_belong_to_its_head() -> None:
    for empty in (b"", b"\r\n", b"\r\n\r\n"):
        raw = empty + a_request()
        assert find_head(raw) == len(raw)
        assert read_head(raw).get("host") == "example.com"
        is_taken(raw + raw)
    is_refused(b"\r\n\r\n\r\n" + a_request())
    is_refused(b"\n" + a_request())
    is_refused(b"\r\r\n" + a_request())
    assert story(b"\r\n").end == "cut"


def test_what_is_not_exactly_a_head_is_a_mistake_of_the_caller() -> None:
    for raw in (b"", b"GET", a_request()[:-2], a_request() + b"x", a_request() * 2):
        with pytest.raises((ValueError, Reject)):
            read_head(raw)


# The request line


@pytest.mark.parametrize(
    "line",
    [
        b"GET",
        b"GET ",
        b"GET /",
        b"GET / ",
        b"GET /old",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"\tGET / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET\t/ HTTP/1.1",
        b"GET /\x0bHTTP/1.1",
        b"GET\xa0/\xa0HTTP/1.1",
        b"GET\x1c/ HTTP/1.1",
        b"GET\r/ HTTP/1.1",
        b"GET / HTTP/1.1\r",
        b"GET / x HTTP/1.1",
        b"GET / http/1.1",
        b"GET / FTP/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/1/1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/0.99",
        b"GET / HTTP/2.00",
        b"GET / HTTP/2",
        b"GET / HTTP/2.",
        b"GET / HTTP/0000000001.1",
        b"GET / HTTP/9.9.9",
        b"GET / HTTP/-1.1",
        b"GET / HTTP/+1.1",
        b"GET / HTTP/11",
        b"GET / HTTP/1.x",
        b"GET / HTTP/ 1.1",
        b"GET / HTTP/\xb2.1",
        b"GET / ICE/1.0",
    ],
)
def test_a_request_line_is_three_words_with_a_space_between(line: bytes) -> None:
    is_refused(a_request(line))


@pytest.mark.parametrize("version", [b"2.0", b"3.0", b"0.9", b"1.2", b"9.9"])
def test_other_versions_are_not_spoken(version: bytes) -> None:
    is_refused(a_request(b"GET / HTTP/" + version), 505)
    line = b"GET /" + b"a" * (8190 - 14) + b" HTTP/" + version  # as long as it may be
    is_refused(a_request(line), 505)
    is_refused(a_request(line.replace(b"a", b"aa", 1)), 414)


@pytest.mark.parametrize("method", [b"G\0T", b"G\x01T", b"bla:rgh", b"G(T", b"\xffGET", b"G\x7f"])
def test_a_method_is_a_token(method: bytes) -> None:
    is_refused(a_request(method + b" / HTTP/1.1"), 400, 501)


def test_a_method_has_at_most_32_characters_and_no_lower_case() -> None:
    is_taken(a_request(b"M" * 32 + b" / HTTP/1.1"))
    is_taken(a_request(b"M-SEARCH / HTTP/1.1"))
    is_refused(a_request(b"M" * 33 + b" / HTTP/1.1"), 501)
    is_refused(a_request(b"get / HTTP/1.1"), 501)
    is_refused(a_request(b"GeT / HTTP/1.1"), 501)


@pytest.mark.parametrize("target", [b"example.com:443", b"[::1]:443", b"Home_0.Example:0"])
def test_connect_asks_for_a_host_and_a_port_and_is_the_last_request(target: bytes) -> None:
    line = b"CONNECT " + target
    told = is_taken(a_request(line + b" HTTP/1.0", host=b"") + b"\x16\x03\x01")
    assert (told.end, told.messages[0].target) == ("closed", target.decode())
    raw = a_request(line + b" HTTP/1.1", host=b"Host: " + target.lower() + b"\r\n")
    assert is_taken(raw + a_request()).end == "closed"
    assert head(raw).path == target.decode()
    for host in (b"", b"Host:\r\n", b"Host: other.example:443\r\n"):
        is_refused(a_request(line + b" HTTP/1.1", host=host))


@pytest.mark.parametrize(
    "target",
    [b"/", b"*", b"http://example.com/", b"example.com", b"example.com:", b":443", b"a:b", b"a:1:2",
     b"[::1:1", b"example.com:65536", b"u@example.com:443", b"example.com:443/", b"a,b:443"],
)  # fmt: skip
def test_connect_asks_for_nothing_else(target: bytes) -> None:
    is_refused(a_request(b"CONNECT " + target + b" HTTP/1.0", host=b""))
    is_taken(a_request(b"CONNECTED / HTTP/1.1"))


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"//evil.example/x",
        b"/..%2f..%2Fetc",
        b"/with_\"lovely\"_quotes?foo=\\\"bar\\\"",
        b"/a|b{c}^`<d>",
        b"/?",
        b"/?a?b/c%zz%%00",
        b"/;a=b,c:d@e!$&'()*+",
        b"/%41%c3%a9",
    ],
)  # fmt: skip
def test_targets_are_kept_as_they_were_sent(target: bytes) -> None:
    request = head(a_request(b"GET " + target + b" HTTP/1.1"))
    assert request.target == request.path == target.decode()
    is_taken(a_request(b"GET " + target + b" HTTP/1.1"))


@pytest.mark.parametrize(
    "target",
    [
        b"/\x7f",
        b"/\0",
        b"/\xc3\xbc",
        b"/\xa0",
        b"/a%00.txt",
        b"/%41%00",
        b"/%zz",
        b"/%",
        b"/%4",
        b"/a%4\x00",
        b"/%4g?x",
        b"/a#b",
        b"/#",
        b"/?a#b",
        b"/a\\b",
        b"\\",
        b"a",
        b"foo/bar",
        b"?a",
        b"#",
        b"*",
        b"**",
        b"/*\x01",
        b"example.com:443",
        b"http:",
        b"http:/a",
        b"http://",
        b"http:///a",
        b"http://?a",
        b"http://example.com#a",
        b"http://example.com/%zz",
        b"http://example.com\\a",
        b"http://:80/",
        b"http://user@example.com/",
        b"http://[::1/",
        b"http://example.com:65536/",
        b"http://other.example/",
        b"http://example.com:81/",
        b"https://example.com:80/",
        b"ftp://example.com/",
        b"httpx://example.com/",
        b"://example.com/",
    ],
)
def test_targets_of_no_known_form_are_refused(target: bytes) -> None:
    is_refused(a_request(b"GET " + target + b" HTTP/1.1"))


def test_an_asterisk_is_for_options_alone() -> None:
    request = head(a_request(b"OPTIONS * HTTP/1.1"))
    assert request.target == request.path == "*"
    is_refused(a_request(b"OPTIONS ** HTTP/1.1"))
    is_refused(a_request(b"OPTIONS *a HTTP/1.1"))


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://example.com", "/"),
        ("http://example.com/", "/"),
        ("http://EXAMPLE.com:80/a?b", "/a?b"),
        ("HTTP://example.com:/a//b", "/a//b"),
        ("https://example.com:443//a", "//a"),
        ("http://example.com?a=/b", "/?a=/b"),
    ],
)
def test_of_a_target_with_a_host_the_handler_sees_path_and_query(target: str, path: str) -> None:
    raw = a_request(f"GET {target} HTTP/1.1".encode())
    request = head(raw)
    assert (request.target, request.path) == (target, path)
    is_taken(raw)
    is_taken(a_request(f"GET {target} HTTP/1.0".encode(), host=b""))
    is_refused(a_request(f"GET {target} HTTP/1.1".encode(), host=b""))
    is_refused(a_request(f"GET {target} HTTP/1.1".encode(), host=b"Host:\r\n"))


# Host


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a",
        "127.0.0.1:8000",
        "[::1]",
        "[2001:db8::ff]:8080",
        "[::ffff:1.2.3.4]:0",
        "a_b.example:65535",
        "EXAMPLE.com:",
        "0.0.0.0=5000",
        "xn--bcher-kva.example",
        "a%41",
    ],
)
def test_a_host_is_a_name_or_an_address_with_or_without_a_port(host: str) -> None:
    is_taken(a_request(host=f"Host: {host}\r\n".encode()))
    is_taken(a_request(host=f"hOST:\t{host}  \r\n".encode()))


@pytest.mark.parametrize(
    "host",
    [
        "a b",
        "a,b",
        "a/b",
        "a?",
        "a#",
        "u@a",
        "u:p@a",
        "a\\b",
        '"a"',
        "<a>",
        "\xfc",
        "a%zz",
        "a%4",
        "[::1",
        "::1",
        "[::1]x",
        "[]",
        "[1::2::3]",
        "[::1%25eth0]",
        "[g::]",
        "[1.2.3.4]",
        "a:65536",
        "a:000080",
        "a:-1",
        "a:b",
        "a:1:2",
        "a:\u0665",
        ":80",
        "http://a",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    is_refused(a_request(host=b"Host: " + host.encode() + b"\r\n"))
    is_refused(a_request(host=b"Host:" + host.encode() + b"\r\n"))


def test_a_host_is_read_from_its_first_character_on() -> None:
    for host in (b"/a", b"@a", b" /a", b"]", b"\x80a", b"[::1", b"\\a"):
        is_refused(a_request(host=b"Host:" + host + b"\r\n"))
    assert head(a_request(host=b"Host:[::1]:80\r\n")).get("host") == "[::1]:80"


def test_one_host_is_needed_in_http_1_1_and_at_most_one_allowed() -> None:
    is_refused(a_request(host=b""))
    is_taken(a_request(b"GET / HTTP/1.0", host=b""))
    for version in (b"1.0", b"1.1"):
        is_refused(a_request(b"GET / HTTP/" + version, b"Host: example.com"))
        is_refused(a_request(b"GET / HTTP/" + version, b"X: y", b"hosT:"))
        is_refused(a_request(b"GET / HTTP/" + version, host=b"Host: a b\r\n"))


# Header lines


@pytest.mark.parametrize(
    "line",
    [
        b": a",
        b"a",
        b"no colon",
        b"a : b",
        b"a\t: b",
        b" a: b",
        b"\ta: b",
        b" ",
        b"a\0: b",
        b"\xe9: b",
        b"a@: b",
        b'"a": b',
        b"a(b): c",
        b"Content\rLength: 3",
        b"a: b\r\n c",
        b"a: b\r\n\tc: d",
        b"a: b\r\n ",
        b"a: b\0",
        b"a: \x07",
        b"a: b\x7f",
        b"a: b\x0b",
        b"a: b\x1f",
        b"a: b\rContent-Length: 5",
        b"a: b\nContent-Length: 5",
        b"a:\n",
        b"a:\r",
        b"\r",
        b"\n",
    ],
)
def test_a_header_line_is_a_name_a_colon_and_text(line: bytes) -> None:
    is_refused(a_request(b"GET / HTTP/1.1", line))
    is_refused(a_request(b"GET / HTTP/1.1", line, b"X: y"))
    is_refused(a_request(host=line + b"\r\n" + HOST))


def test_lines_end_in_crlf_alone() -> None:
    is_refused(a_request().replace(b"\r\n", b"\n"))
    is_refused(a_request().replace(b"\r\n", b"\r"))
    for at in (m.start() for m in re.finditer(b"\r\n", a_request(b"GET / HTTP/1.1", b"a: b"))):
        raw = a_request(b"GET / HTTP/1.1", b"a: b")
        is_refused(raw[:at] + raw[at + 1 :] + b"x: y\r\n\r\n")
        is_refused(raw[: at + 1] + raw[at + 2 :] + b"x: y\r\n\r\n")


def test_names_that_differ_only_in_underscores_stay_apart() -> None:
    request = head(a_request(b"GET / HTTP/1.1", b"Content_Length: 5", b"Transfer_Encoding: x"))
    assert request.length == 0
    assert request.get("content-length") is None


# Garbage is known by its beginning


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6",
        b"PRI * HTTP/2.0\r\n",
        b"PRI * ",
        b"PRI / ",
        b"\0\0\x12\4\0\0\0\0\0",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/2.00",
        b"GET / FTP",
        b"GET /\r/",
        b"get",
        b"{",
        b"GET / HTTP/1.1\r\n ",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"GET / HTTP/1.1\r\nHost: a\rb",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rZ",
        b"GET / HTTP/1.1\r\n\n",
        b"\r\n\r\n\r\n",
        b"A" * 33,
        b"GET /" + b"a" * 8190,
        b"GET / HTTP/1.1\r\na: " + b"a" * 8190,
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 100 + b"a",
    ],
)
def test_nobody_waits_for_the_rest_of_what_can_become_no_request(garbage: bytes) -> None:
    with pytest.raises(Reject):
        find_head(garbage)
    is_refused(garbage, 400, 414, 431, 501, 505)
    is_refused(garbage + b"\r\n\r\n" + a_request(), 400, 414, 431, 501, 505)


def test_the_beginning_of_a_request_is_waited_for_at_every_byte() -> None:
    for raw in (
        b"\r\n\r\n" + a_request(b"POST /%41?a HTTP/1.1", b"X:", b"Content-Length: 0"),
        a_request(b"OPTIONS * HTTP/1.0"),
        a_request(b"GET http://example.com:80/ HTTP/1.1", b"Y: z\xff"),
    ):
        for end in range(len(raw)):
            for seen in {0, 1, end // 2, max(0, end - 1)}:
                assert find_head(raw[:end], seen=min(seen, end)) == 0
        assert find_head(raw) == find_head(raw, seen=len(raw) - 1) == len(raw)


def test_a_refusal_never_repeats_what_was_sent() -> None:
    for raw in (
        a_request(b"GET /leak\xff HTTP/1.1"),
        a_request(b"GET / HTTP/1.1", b"leak"),
        a_request(b"leak / HTTP/1.1"),
        a_post(b"Content-Length: leak"),
        a_post(b"Transfer-Encoding: leak"),
        a_request(host=b"Host: leak leak\r\n"),
        a_request(b"GET / HTTP/1.1", b"Expect: leak"),
    ):
        reason = is_refused(raw, 400, 417, 501)
        assert "leak" not in reason
        assert re.fullmatch(r"[A-Z][\x20-\x7e]*\.", reason)


# How long a body is


@pytest.mark.parametrize("value", [b"0", b"3", b"003", b" 3\t ", b"000000000000000003"])
def test_a_content_length_is_a_number(value: bytes) -> None:
    raw = a_post(b"content-LENGTH:" + value) + b"abc"[: int(value)]
    told = is_taken(raw + a_request())
    assert told.messages[0].body == b"abc"[: int(value)]
    assert len(told.messages) == 2


@pytest.mark.parametrize(
    "value",
    [b"", b"+5", b"-0", b"-1", b"0x5", b"0_5", b"5.0", b"5, 5", b"5,6", b"5 5", b"5;", b"five",
     b"\xd9\xa5", b"\xb2", b"\xb5", b"\xa05", b"1" * 19, b"0" * 21, b"9" * 5000],
)  # fmt: skip
def test_what_is_no_number_is_no_content_length(value: bytes) -> None:
    is_refused(a_post(b"Content-Length: " + value) + b"hello")


def test_a_content_length_is_said_once() -> None:
    is_refused(a_post(b"Content-Length: 5", b"Content-Length: 6") + b"hello")
    is_refused(a_post(b"Content-Length: 5", b"content-length: 5") + b"hello")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"", b"gzip, chunked"])
def test_a_body_has_one_framing(version: bytes, coding: bytes) -> None:
    fields = [b"Content-Length: 5", b"Transfer-Encoding: " + coding]
    is_refused(a_post(*fields, version=version) + b"0\r\n\r\n")
    is_refused(a_post(*reversed(fields), version=version) + b"0\r\n\r\n")


def test_http_1_0_has_no_transfer_encoding() -> None:
    is_refused(a_post(b"Transfer-Encoding: chunked", version=b"1.0") + b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"identity", 501),
        (b"gzip", 501),
        (b"gzip, chunked", 501),
        (b"xchunked", 501),
        (b"chunkedchunked", 501),
        (b"gzip\r\nTransfer-Encoding: chunked", 501),
        (b"chunked, gzip", 400),
        (b"chunked, chunked", 400),
        (b"chunked\r\nTransfer-Encoding: chunked", 400),
        (b"chunked;q=1", 400),
        (b'"chunked"', 400),
        (b",chunked", 400),
        (b"chunked,", 400),
        (b"\x0bchunked", 400),
        (b"\xa0chunked", 400),
        (b"chunked chunked", 400),
        (b"", 400),
    ],
)
def test_the_one_transfer_coding_is_chunked(coding: bytes, status: int) -> None:
    is_refused(a_post(b"Transfer-Encoding: " + coding) + b"0\r\n\r\n", status)


@pytest.mark.parametrize("coding", [b"chunked", b"CHUNKED", b"\tChunked "])
def test_chunked_may_be_written_in_any_case(coding: bytes) -> None:
    request = head(a_post(b"Transfer-Encoding:" + coding))
    assert request.chunked
    assert request.length is None


# Expectations


def test_a_client_is_told_to_go_on_where_it_has_something_to_send() -> None:
    expect = b"Expect: 100-Continue"
    assert head(a_post(expect, b"Content-Length: 5")).expects_continue
    assert head(a_post(expect, b"Transfer-Encoding: chunked")).expects_continue
    assert not head(a_post(expect, b"Content-Length: 0")).expects_continue
    assert not head(a_post(expect)).expects_continue
    assert not head(a_post(expect, b"Content-Length: 5", version=b"1.0")).expects_continue


@pytest.mark.parametrize(
    "value", [b"", b"200-maybe", b"100-continue, x", b"100-continue\r\nExpect: y"]
)
def test_nothing_else_can_be_expected(value: bytes) -> None:
    is_refused(a_request(b"GET / HTTP/1.1", b"Expect: " + value), 417)
    is_taken(a_request(b"GET / HTTP/1.0", b"Expect: " + value))


def test_a_body_that_is_too_long_is_not_asked_for() -> None:
    raw = a_post(b"Expect: 100-continue", b"Content-Length: 11")
    is_refused(raw, 413, limits=Limits(body=10))


# Chunks


def test_chunks_are_joined_and_what_follows_them_is_not_touched() -> None:
    body = b'5\r\nhello\r\n006;a=b;c="d;\\"";e ; f = g\r\n world\r\n0;x\r\nX: y\r\n\r\n'
    told = is_taken(chunked(body) + a_request(b"GET /next HTTP/1.1"))
    assert [message.body for message in told.messages] == [b"hello world", b""]
    assert told.messages[0].end == len(chunked(body))
    buffer = bytearray(body + b"GET /")
    chunks = Chunks()
    assert chunks.feed(buffer) == b"hello world"
    assert chunks.finished
    assert buffer == b"GET /"
    assert chunks.feed(buffer) == b""
    assert buffer == b"GET /"


def test_a_decoder_is_gone_as_soon_as_nobody_holds_it() -> None:
    class Watched(Chunks):  # one that can be watched
        pass

    chunks = Watched()
    chunks.feed(bytearray(b"5\r\nhel"))
    watch = weakref.ref(chunks)
    gc.disable()
    try:
        del chunks
        assert watch() is None
    finally:
        gc.enable()


def test_trailers_are_never_merged_into_the_fields() -> None:
    told = is_taken(chunked(b"0\r\nVary: *\r\nX-Secret:\xff\r\n\r\n"))
    assert dict(told.messages[0].fields).keys() == {"Host", "Transfer-Encoding"}


@pytest.mark.parametrize(
    "size", [b" 5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"5_0", b"", b"g", b"5g", b"5.", b"\xb2",
             b"0" * 16 + b"5", b"5 5", b"5\0", b"\r5"],
)  # fmt: skip
def test_the_size_of_a_chunk_is_one_to_sixteen_hexadecimal_digits(size: bytes) -> None:
    is_refused(chunked(size + b"\r\nhello\r\n0\r\n\r\n"))
    is_refused(chunked(b"1\r\na\r\n" + size + b"\r\nhello\r\n0\r\n\r\n"))


def test_a_chunk_size_of_sixteen_digits_is_a_number() -> None:
    is_taken(chunked(b"0" * 15 + b"5\r\nhello\r\n" + b"0" * 16 + b"\r\n\r\n"))
    is_refused(chunked(b"f" * 16 + b"\r\n"), 413)


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: y\n\r\n",
        b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
    ],
)
def test_chunks_end_where_they_say_and_in_crlf(body: bytes) -> None:
    is_refused(chunked(body))


def test_a_body_that_ends_early_is_no_request() -> None:
    body = chunked(b"5\r\nhello\r\n0\r\nX: y\r\n\r\n")
    for end in range(len(a_post(b"Transfer-Encoding: chunked")), len(body)):
        assert story(body[:end]) == Story([], "cut")
    assert story(a_post(b"Content-Length: 5") + b"hell") == Story([], "cut")


@pytest.mark.parametrize(
    "extension",
    [b";", b";;", b"; ", b";=", b";a=", b';a="', b';a="b', b';a="b"c', b';a="\\"', b";a b", b";a\r",
     b";\0", b";a=\x07", b";a=b=c", b"x", b" a", b';a="\r\n"', b" ;", b";a ", b";a=\xff"],
)  # fmt: skip
def test_chunk_extensions_are_well_formed(extension: bytes) -> None:
    is_refused(chunked(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"))


@pytest.mark.parametrize(
    "name",
    ["Content-Length", "content-range", "CONTENT-X", "Transfer-Encoding", "Host", "Authorization",
     "Cookie", "Set-Cookie", "Connection", "Trailer", "TE", "Upgrade", "Expect", "Forwarded"],
)  # fmt: skip
def test_a_trailer_cannot_say_what_belongs_before_the_body(name: str) -> None:
    is_refused(chunked(b"0\r\nX: y\r\n" + name.encode() + b": 5\r\n\r\n"))


@pytest.mark.parametrize("name", [b"Content-Type", b"Content-Digest", b"Vary", b"Content"])
def test_a_trailer_that_frames_nothing_is_dropped(name: bytes) -> None:
    told = is_taken(chunked(b"1\r\na\r\n0\r\n" + name + b": x/y\r\n\r\n") + a_request())
    assert dict(told.messages[0].fields).keys() == {"Host", "Transfer-Encoding"}
    assert len(told.messages) == 2


# Limits: each passes at its number, and one more does not


def test_a_request_line_of_8190_bytes_passes() -> None:
    line = b"GET /" + b"a" * (8190 - 14) + b" HTTP/1.1"
    assert len(line) == 8190
    is_taken(a_request(line))
    is_taken(b"\r\n\r\n" + a_request(line))
    is_refused(a_request(line.replace(b"a", b"aa", 1)), 414)
    is_refused(b"\r\n\r\n" + a_request(line.replace(b"a", b"aa", 1)), 414)
    is_refused(a_request(b"GET /" + b"a" * 20000), 414)


def test_a_header_line_of_8190_bytes_passes() -> None:
    line = b"A: " + b"b" * (8190 - 3)
    is_taken(a_request(b"GET / HTTP/1.1", line))
    is_refused(a_request(b"GET / HTTP/1.1", line + b"b"), 431)
    is_refused(a_request(b"GET / HTTP/1.1", b"A" * 8191), 431)
    is_taken(a_request(b"GET / HTTP/1.1", b"A:bc"), Limits(field=17))
    is_refused(a_request(b"GET / HTTP/1.1"), 431, limits=Limits(field=16))


@pytest.mark.parametrize("most", [1, 7, 100, 150])
def test_a_hundred_fields_pass_or_as_many_as_the_limit_says(most: int) -> None:
    limits = Limits(fields=most)
    is_taken(a_request(b"GET / HTTP/1.1", *[b"a:"] * (most - 1)), limits)
    is_taken(b"\r\n\r\n" + a_request(b"GET / HTTP/1.1", *[b"a:"] * (most - 1)), limits)
    is_refused(a_request(b"GET / HTTP/1.1", *[b"a:"] * most), 431, limits=limits)


def test_a_head_of_64_kib_passes_with_the_empty_lines_around_it() -> None:
    for before in (b"", b"\r\n\r\n"):
        raw = before + a_request(b"GET / HTTP/1.1", *[b"a:" + b"b" * 8000] * 8)
        raw = raw[:-2] + b"c:" + b"d" * (65536 - len(raw) - 4) + b"\r\n\r\n"
        assert len(raw) == 65536
        assert find_head(raw) == 65536
        assert read(raw[at : at + 4093] for at in range(0, 65536, 4093)).end == "idle"
        more = raw.replace(b"d", b"dd", 1)
        with pytest.raises(Reject) as refusal:
            find_head(more)
        assert refusal.value.status == 431
        assert read(bytes_of(more)).end == 431
        with pytest.raises(Reject):
            find_head(raw[:-1] + b"d")


@pytest.mark.parametrize("most", range(15, 70))
def test_every_size_of_a_small_head_is_judged_the_same_in_pieces(most: int) -> None:
    raw = a_request(b"GET / HTTP/1.1", b"a: b", b"c: d")
    told = story(raw, Limits(head=most))
    assert (told.end == "idle") == (len(raw) <= most)
    assert told.end in ("idle", 431)


def test_a_body_has_the_same_limit_in_either_framing() -> None:
    limits = Limits(body=10)
    is_taken(a_post(b"Content-Length: 10") + b"0123456789", limits)
    is_refused(a_post(b"Content-Length: 11") + b"0123456789a", 413, limits=limits)
    is_taken(chunked(b"5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n"), limits)
    is_refused(chunked(b"5\r\n01234\r\n6\r\n56789a\r\n0\r\n\r\n"), 413, limits=limits)
    assert head(a_post(b"Content-Length: 1073741824")).length == 1 << 30
    is_refused(a_post(b"Content-Length: 1073741825"), 413)


def test_all_extensions_of_a_body_together_have_4096_bytes() -> None:
    half = b"1;" + b"a" * 2047 + b"\r\nx\r\n"
    is_taken(chunked(half + half + b"0\r\n\r\n"))
    is_refused(chunked(half + half + b"0;\r\n\r\n"))
    is_refused(chunked(half + half.replace(b"a", b"aa", 1) + b"0\r\n\r\n"))
    is_refused(chunked(b"5;" + b"a" * 5000))


def test_trailers_have_the_limits_of_a_head() -> None:
    is_taken(chunked(b"0\r\n" + b"a:\r\n" * 100 + b"\r\n"))
    is_refused(chunked(b"0\r\n" + b"a:\r\n" * 101 + b"\r\n"))
    is_taken(chunked(b"0\r\n" + b"a:" + b"b" * 8188 + b"\r\n\r\n"))
    is_refused(chunked(b"0\r\n" + b"a:" + b"b" * 8189 + b"\r\n\r\n"))
    limits = Limits(head=100)
    is_taken(chunked(b"0\r\na:" + b"b" * 50 + b"\r\nc:" + b"d" * 40 + b"\r\n\r\n"), limits)
    is_refused(chunked(b"0\r\na:" + b"b" * 50 + b"\r\nc:" + b"d" * 41 + b"\r\n\r\n"), limits=limits)
    is_refused(chunked(b"0\r\na:" + b"b" * 100), limits=limits)


# Time


HEADS: dict[str, Callable[[int], bytes]] = {
    "path": lambda n: b"GET /" + b"a" * n + b"\0",
    "escapes": lambda n: b"GET /" + b"%41" * (n // 3) + b"%zz HTTP/1.1\r\n\r\n",
    "query": lambda n: b"GET /?" + b"?" * n + b"# HTTP/1.1\r\n\r\n",
    "host in target": lambda n: b"GET http://" + b"%41" * (n // 3) + b"# HTTP/1.1\r\n\r\n",
    "spaces": lambda n: a_request(b"GET / HTTP/1.1", b"a:" + b" \t" * (n // 2) + b"\0"),
    "fields": lambda n: a_request(b"GET / HTTP/1.1", *[b"a: b"] * (n // 6), b"\0"),
    "options": lambda n: a_request(b"GET / HTTP/1.1", *[b"Connection: a"] * (n // 15)),
    "commas": lambda n: a_request(b"GET / HTTP/1.1", b"Connection: " + b", " * (n // 2)),
    "codings": lambda n: a_post(b"Transfer-Encoding: " + b",x" * (n // 2)),
    "digits": lambda n: a_post(b"Content-Length: " + b"0" * n),
    "lengths": lambda n: a_post(*[b"Content-Length: 1"] * (n // 20)),
    "host": lambda n: a_request(host=b"Host: " + b"%41" * (n // 3) + b"/\r\n"),
    "address": lambda n: a_request(host=b"Host: [" + b":" * n + b"]\r\n"),
    "extensions": lambda n: chunked(b"1" + b";a" * (n // 2) + b";\r\n"),
    "quotes": lambda n: chunked(b'1;a="' + b'\\"' * (n // 2) + b"\r\n"),
    "blanks": lambda n: chunked(b"1" + b" " * n + b"x\r\n"),
    "values": lambda n: chunked(b"1" + b';a="b"' * (n // 6) + b'"\r\n'),
}


@pytest.mark.parametrize("kind", HEADS)
def test_time_grows_with_length_and_not_with_its_square(kind: str) -> None:
    limits = Limits(line=1 << 20, field=1 << 20, fields=1 << 20, head=1 << 20, extensions=1 << 20)

    def spent(size: int) -> float:
        raw = HEADS[kind](size)
        best = float("inf")
        for _ in range(7):
            start = time.process_time()
            read([raw], limits)
            best = min(best, time.process_time() - start)
        return best

    # Eight times the length is 8 times the time if it is linear, 64 if it is quadratic.
    assert spent(1 << 16) < 30 * spent(1 << 13) + 0.001


def test_no_group_is_repeated_possessively() -> None:
    """Before 3.11.5 ``(?:ab?c)*+`` matched "a" (gh-106052), and a half escape could pass."""
    for path in Path(wire.__file__).parent.glob("*.py"):
        assert not re.search(r"\)(?:[*+?]|\{+[^{}]*\}+)\+", path.read_text()), path


# Answers and logs


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "\xe9", "a\0", "a\n", " a", "a("])
def test_the_name_of_a_response_field_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="a token"):
        check_field(name, "b")


@pytest.mark.parametrize(
    "value", ["a\r\nSet-Cookie: b", "\n", "\r", "a\0", "\x1f", "\x7f", "\u20ac"]
)
def test_a_response_says_in_no_line_more_than_one(value: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        check_field("X", value)
    with pytest.raises(ValueError, match="control characters"):
        check_reason(value)


@pytest.mark.parametrize("value", ["", "a\tb c", "\xe9\xff", '"a"; b=c'])
def test_ordinary_response_fields_pass(value: str) -> None:
    check_field("X-Field_1", value)
    check_reason(value)


def test_what_goes_into_a_log_is_printable_and_ends_no_quotes() -> None:
    assert escape("/plain?a=b") == "/plain?a=b"
    assert escape('a"b\\c\n\x7f\x85\xff') == 'a\\"b\\\\c\\x0a\\x7f\\x85\\xff'
    assert escape("\u20ac\ud800") == "\\x20ac\\xd800"
    assert escape("a" * 9000) == "a" * 8192
    assert escape('""""', 5) == '\\"\\"'
    assert escape("ab\n", 5) == "ab"
    assert escape("ab\n", 6) == "ab\\x0a"


# What holds for everything

FEW = settings(max_examples=soak(100, 10_000), deadline=None)
NAMES = st.text("abcxyzABC-_!#1", min_size=1, max_size=12)
VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30)
SCRAPS = st.lists(
    st.sampled_from(
        [b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host: a\r\n", b"\r\n\r\n", b":",
         b" ", b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n", b"\0",
         b"0\r\n\r\n", b"\xff", b"a", b"1", b";", a_request(), chunked(b"1\r\nx\r\n0\r\n\r\n")]
    ),
    max_size=12,
)  # fmt: skip


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(end, len(raw)) for end in at} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


@FEW
@given(SCRAPS, st.lists(st.integers(0, 200)))
def test_scraps_of_requests_are_judged_the_same_in_any_pieces(
    scraps: list[bytes], at: list[int]
) -> None:
    raw = b"".join(scraps)
    assert read(cut(raw, at)) == read([raw])


@FEW
@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_no_bytes_do_anything_but_wait_or_be_refused(raw: bytes, at: list[int]) -> None:
    assert read(cut(raw, at)) == read([raw])
    assert read(cut(chunked(raw), at)) == read([chunked(raw)])


@FEW
@given(st.lists(st.tuples(NAMES, VALUES), max_size=10), st.lists(st.integers(0, 300)))
def test_what_is_sent_by_the_rules_arrives(fields: list[tuple[str, str]], at: list[int]) -> None:
    for name, value in fields:
        check_field(name, value)
    sent = [("Host", "a"), *fields]
    lines = [f"{name}:{value}\r\n".encode("latin-1") for name, value in sent]
    told = read(cut(b"GET / HTTP/1.0\r\n" + b"".join(lines) + b"\r\n", at))
    if told.messages:  # one of the names may mean something
        assert told.messages[0].fields == [(name, value.strip(" \t")) for name, value in sent]
    else:
        assert {name.lower() for name, _ in fields} & {"host", "content-length"}


@FEW
@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 400)), st.booleans())
def test_chunks_of_any_size_in_any_pieces_are_the_body(
    data: list[bytes], at: list[int], upper: bool
) -> None:
    sizes = (f"{len(piece):{'X' if upper else 'x'}}".encode() for piece in data)
    body = b"".join(b"%b\r\n%b\r\n" % pair for pair in zip(sizes, data, strict=True))
    raw = chunked(body + b"0\r\n\r\n")
    told = read(cut(raw + a_request(), at))
    assert [message.body for message in told.messages] == [b"".join(data), b""]
    assert told.messages[0].end == len(raw)


@FEW
@given(st.text(max_size=40), st.integers(0, 100))
def test_an_escaped_text_can_be_cut_anywhere_and_stays_inside_its_quotes(
    text: str, limit: int
) -> None:
    written = escape(text, limit)
    assert len(written) <= limit
    assert re.fullmatch(r'(?:[ !#-\[\]-~]|\\["\\]|\\x[0-9a-f]{2,6})*', written)


# The cases of llhttp

# Where this server wants something else than the case, and why.
OTHERWISE = {
    "content-length/032": "its first body never comes: those parsers were told to skip it",
    "transfer-encoding/139": "deflate is not known, and those parsers do not decode it either",
    "transfer-encoding/140": "deflate is not known, and those parsers do not decode it either",
    "uri/158": "a fragment is not part of a target",
    "uri/160": "a host with a user in front is no host",
}


def with_host(raw: bytes) -> bytes:
    """Put in the Host that HTTP/1.1 must have, the one of the target if there is one."""

    def line(found: re.Match[bytes]) -> bytes:
        named = re.search(rb" https?://([^/? ]*)", found[0])
        return found[0] + b"Host: " + (named[1] if named else b"h") + b"\r\n"

    if re.search(rb"(?mi)^host:", raw.partition(b"\r\n\r\n")[0]):
        return raw
    return re.sub(rb"[^\r\n]* HTTP/1\.1\r\n", line, raw)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_llhttps_cases_are_judged_as_they_should_be(case: dict[str, str]) -> None:
    raw = case["raw"].encode("latin-1" if max(case["raw"]) <= "\xff" else "utf-8")
    if case["verdict"] == "accept":
        raw = with_host(raw)
    told = story(raw)
    if case["id"].removeprefix("llhttp/") in OTHERWISE:
        assert not told.messages
    elif case["verdict"] == "accept":
        assert told.messages
    elif case["verdict"] == "reject":
        # Where the stream ends inside a message, the server refuses it then.
        assert not told.messages
        assert told.end not in ("idle", "closed")
    else:
        assert len(told.messages) <= max(1, int(case["messages"]))


def test_only_cases_that_want_a_request_taken_are_judged_otherwise() -> None:
    verdicts = {case["id"].removeprefix("llhttp/"): case["verdict"] for case in CASES}
    assert {verdicts[name] for name in OTHERWISE} == {"accept"}


# What is known

FIELDS = b"HTTP/1.1\r\nHost: known\r\nX: y\r\n\r\n"


def test_fields_that_were_read_are_known_whatever_the_path_and_the_method() -> None:
    read_head(b"GET / " + FIELDS)
    for method, target in (("POST", "/a?b=%20c"), ("GET", "/%C3%A4"), ("HEAD", "//x")):
        known = read_known(f"{method} {target} ".encode() + FIELDS)
        assert known
        assert (known.method, known.target, known.path) == (method, target, target)
        assert known.fields == [("Host", "known"), ("X", "y")]


def test_the_same_head_is_the_same_request_unless_it_has_other_limits() -> None:
    head = b"GET /same " + FIELDS
    read_head(head)
    first = read_known(head)
    assert first and read_known(head) is first is not read_known(b"GET /other " + FIELDS)
    assert read_known(bytearray(head)) is read_known(head, Limits(fields=1)) is None


def test_of_a_head_that_is_not_plain_nothing_is_known() -> None:
    read_head(b"GET / " + FIELDS)
    read_head(b"GET http://known/ " + FIELDS)
    for start in (b"", b"GET ", b"GET  / ", b"GET x ", b"GET /# ", b"GET /%2 ", b"GET /\\ ",
                  b"GET /\xe4 ", b"GET /\0 ", b"get / ", b"BREW / ", b"CONNECT / ", b"PRI / ",
                  b"GET http://known/ ", b"GET * ", b"\r\nGET / "):  # fmt: skip
        assert read_known(start + FIELDS) is None, start
    assert read_known(b"GET / " + FIELDS + b"x") is None
    assert read_known(b"GET / " + FIELDS[:-1]) is None
    assert read_known(b"GET / " + FIELDS.replace(b"/1.1", b"/1.0")) is None
    assert read_known(b"GET /%b " % (b"x" * LIMITS.line) + FIELDS) is None
    assert read_known(b"GET / " + FIELDS, Limits(fields=1)) is None


def test_only_so_much_is_known() -> None:
    long = b"HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % (b"x" * 4096)
    read_head(b"GET / " + long)
    assert read_known(b"GET / " + long) is None
    for number in range(1000):
        fields = b"HTTP/1.1\r\nHost: h%d\r\n\r\n" % number
        read_head(b"GET / " + fields)
        assert read_known(b"GET / " + fields)
    assert read_known(b"GET / HTTP/1.1\r\nHost: h0\r\n\r\n") is None
