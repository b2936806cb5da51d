"""TLS as keywords of our servers: what is wrong with a certificate is told before anything else."""

import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from prefork_server import (
    ConfigError,
    PreforkTCPServer,
    PreforkUDPServer,
    PreforkUnixDatagramServer,
    PreforkUnixStreamServer,
)
from prefork_server.credentials import Credentials, credentials
from prefork_server.http import PreforkHTTPServer
from prefork_server.tls import HANDSHAKE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, its key, a key that is encrypted, and what is none of these."""
    directory = tmp_path_factory.mktemp("credentials")
    issued = trustme.CA().issue_cert("localhost")
    key = issued.private_key_pem.bytes()
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    (directory / "key.pem").write_bytes(key)
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(directory / "other.pem")
    (directory / "locked.pem").write_bytes(
        serialization.load_pem_private_key(key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"sesame"),
        )
    )
    (directory / "noise.pem").write_bytes(bytes(range(256)))
    (directory / "broken.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"
    )
    os.mkfifo(directory / "fifo")
    return directory


def load(files: Path, cert: str, key: str | None, password: Any = None) -> ssl.SSLContext:
    place = [name and files / name for name in (cert, key)]
    return credentials(*place, password, ()).context()  # type: ignore[arg-type]


@pytest.mark.parametrize("password", ["sesame", b"sesame", lambda: "sesame"])
def test_an_encrypted_key_opens_with_its_password(files: Path, password: Any) -> None:
    load(files, "cert.pem", "locked.pem", password)


@pytest.mark.parametrize(
    ("cert", "key", "password", "sentence"),
    [
        ("none.pem", "key.pem", None, "certfile .*/none.pem: No such file"),
        ("cert.pem", "none.pem", None, "keyfile .*/none.pem: No such file"),
        ("fifo", "key.pem", None, "certfile must be a regular file, and .*/fifo is none"),
        ("cert.pem", "fifo", None, "keyfile must be a regular file, and .*/fifo is none"),
        (".", "key.pem", None, "certfile must be a regular file"),
        ("noise.pem", "key.pem", None, "certfile must be a PEM file with a certificate in it"),
        ("cert.pem", "noise.pem", None, "keyfile must be a PEM file with a private key in it"),
        (
            "cert.pem",
            None,
            None,
            "keyfile must be a PEM file with a private key in it, .*cert.pem",
        ),
        ("key.pem", None, None, "certfile must be a PEM file with a certificate in it, .*key.pem"),
        ("broken.pem", "key.pem", None, "must be a certificate and its key, in PEM"),
        ("cert.pem", "other.pem", None, "the key in .*/other.pem is not that of .*/cert.pem"),
        ("cert.pem", "locked.pem", None, "keyfile .*/locked.pem is encrypted: give its password="),
        ("cert.pem", "locked.pem", "no", "locked.pem must be .*; the password may be wrong"),
        ("cert.pem", "locked.pem", "x" * 2000, "locked.pem: password cannot be longer"),
        ("cert.pem", "locked.pem", lambda: 5, "locked.pem: .*must return a string"),
        (
            "cert.pem",
            "key.pem",
            5,
            "password must be a text, bytes, or what returns one, not a",
        ),
    ],
)
def test_what_is_no_certificate_with_its_key_is_one_clear_sentence(
    files: Path, cert: str, key: str | None, password: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        load(files, cert, key, password)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["", "a\0b", 5, b"cert.pem"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="certfile must be a path, not"):
        credentials(path, None, None, ())


def test_nobody_reads_the_password_in_a_traceback(files: Path) -> None:
    assert "sesame" not in repr(credentials(files / "cert.pem", None, "sesame", ()))


def test_the_context_is_for_tls_1_2_without_what_has_hurt(files: Path) -> None:
    context = load(files, "cert.pem", "key.pem")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION, ssl.OP_CIPHER_SERVER_PREFERENCE):
        assert context.options & option
    assert not context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    assert context.verify_mode == ssl.CERT_NONE


def test_a_relative_path_is_meant_from_the_directory_at_the_start(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    made = credentials("cert.pem", "key.pem", None, ())
    monkeypatch.chdir("/")
    assert isinstance(made, Credentials) and made.context()


class Nobody:
    """A handler, if anybody came."""

    def __init__(self, *_: object) -> None: ...


@pytest.mark.parametrize("server", [PreforkUDPServer, PreforkUnixDatagramServer])
@pytest.mark.parametrize(
    "keywords",
    [
        {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        {"certfile": "cert.pem"},
        {"keyfile": "key.pem"},
        {"password": "x"},
        {"proxy_protocol_from": ["127.0.0.1"]},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
def test_datagrams_have_no_tls_and_no_proxy_header(
    server: Any, keywords: Any, tmp_path: Path
) -> None:
    address = ("127.0.0.1", 0) if server is PreforkUDPServer else str(tmp_path / "s")
    with pytest.raises(ConfigError, match=f"{next(iter(keywords))} is for streams"):
        server(address, Nobody, **keywords)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"ssl_context": "yes"}, "ssl_context must be an ssl.SSLContext, not 'yes'"),
        (
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
            "ssl_context must be for a serv",
        ),
        ({"ssl_context": 1, "certfile": "x"}, "ssl_context has its certificate already.* certfile"),
        ({"ssl_context": 1, "keyfile": "x"}, "ssl_context has its certificate already.* keyfile"),
        ({"ssl_context": 1, "password": "x"}, "ssl_context has its certificate already.* password"),
        ({"keyfile": "x"}, "keyfile is for a certfile, and there is none"),
        ({"password": "x"}, "password is for a certfile, and there is none"),
        ({"keyfile": ""}, "keyfile is for a certfile, and there is none"),
        ({"certfile": "x"}, "certfile /.*/x: No such file"),
        ({"certfile": ""}, "certfile must be a path, not ''"),
        ({"proxy_protocol_from": "10.0.0.1"}, "proxy_protocol_from must be a list"),
        ({"proxy_protocol_from": ""}, "proxy_protocol_from must be a list"),
        ({"proxy_protocol_from": ["10.0.0.1/8"]}, "proxy_protocol_from must have addresses"),
    ],
)
@pytest.mark.parametrize("server", [PreforkTCPServer, PreforkHTTPServer, PreforkUnixStreamServer])
def test_all_is_checked_before_anything_is_bound(
    server: Any, keywords: Any, sentence: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        unix = server is PreforkUnixStreamServer
        address = str(tmp_path / "s") if unix else busy.getsockname()
        with pytest.raises(ConfigError, match=sentence):  # and no BindError
            server(address, Nobody, **keywords)
    assert not list(tmp_path.iterdir())


def test_handle_request_does_not_speak_plain_text(files: Path) -> None:
    tls = {"certfile": files / "cert.pem", "keyfile": files / "key.pem"}
    for keywords in (tls, {"proxy_protocol_from": ["unix"]}):
        server = PreforkTCPServer(("127.0.0.1", 0), Nobody, **keywords)  # type: ignore[arg-type]
        with server, pytest.raises(ConfigError, match="use serve_forever"):
            server.handle_request()


def test_the_handshake_has_the_same_time_by_keyword_as_in_a_foreign_class() -> None:
    assert PreforkTCPServer.handshake_timeout == HANDSHAKE


def test_a_context_of_the_programs_own_is_not_renewed() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with PreforkTCPServer(("127.0.0.1", 0), Nobody, ssl_context=context) as server:  # type: ignore[arg-type]
        server._prefork_renew()
        assert server._prefork_terms and server._prefork_terms.context is context
    with PreforkTCPServer(("127.0.0.1", 0), Nobody) as server:  # type: ignore[arg-type]
        server._prefork_renew()
        assert server._prefork_terms is None and server._prefork_launch().renew() is None
