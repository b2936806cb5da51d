"""The certificate and the key of a server, read and checked before anything is bound.

Loaded where a program names them, and only there: ``ssl`` is heavy.
"""

import logging
import os
import ssl
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias

from .errors import ConfigError
from .settings import FilePath, absolute
from .text import printable

Password: TypeAlias = str | bytes | Callable[[], str | bytes]

_CERTIFICATE, _KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"  # how their PEM blocks begin


@dataclass(frozen=True)
class Credentials:
    """Where they are: PEM files, by absolute paths. ``protocols`` are what ALPN offers."""

    certfile: str
    keyfile: str
    password: Password | None = field(repr=False)
    protocols: Sequence[str]

    def context(self) -> ssl.SSLContext:
        """A new context, of what the files say now: for TLS 1.2 and later, without
        compression and renegotiation. Raises ConfigError."""
        _check("certfile", self.certfile, _CERTIFICATE, "certificate")
        _check("keyfile", self.keyfile, _KEY, "private key")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        # Else OpenSSL 3 takes an end without a goodbye for one with it, and what an attacker
        # cut short for the whole.
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        if self.protocols:
            context.set_alpn_protocols(list(self.protocols))
        try:
            # Without a password OpenSSL would ask for it on the terminal, and wait.
            password = self._refuse if self.password is None else self.password
            context.load_cert_chain(self.certfile, self.keyfile, password)
        except ssl.SSLError as error:
            raise ConfigError(self._sentence(error)) from None
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"certfile {self.certfile}, keyfile {self.keyfile}: {error}") from (
                error
            )
        return context

    def warn_of_readers(self, logger: logging.Logger) -> None:
        """Whoever reads the key can pretend to be this server."""
        mode = stat.S_IMODE(os.stat(self.keyfile).st_mode)
        if mode & 0o077:
            logger.warning(
                "keyfile %s is open to others than its owner: its mode is %04o, and should be 0600",
                printable(str(self.keyfile)),
                mode,
                extra={"event": "key_exposed"},
            )

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"keyfile {self.keyfile} is encrypted: give its password=")

    def _sentence(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key in {self.keyfile} is not that of the certificate in {self.certfile}"
        hint = "" if self.password is None else "; the password may be wrong"
        return (
            f"certfile {self.certfile} and keyfile {self.keyfile} must be a certificate and its "
            f"key, in PEM: {error.reason or error}{hint}"
        )


def credentials(
    certfile: FilePath,
    keyfile: FilePath | None,
    password: Password | None,
    protocols: Sequence[str],
) -> Credentials:
    """``keyfile`` None: the key is in ``certfile``, too. Raises ConfigError."""
    cert = _path("certfile", certfile)
    key = cert if keyfile is None else _path("keyfile", keyfile)
    if not (password is None or isinstance(password, str | bytes) or callable(password)):
        raise ConfigError(
            f"password must be a text, bytes, or what returns one, not a {type(password).__name__}"
        )
    return Credentials(cert, key, password, protocols)


def _path(setting: str, given: FilePath) -> str:
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{setting} must be a path, not {given!r}")
    return absolute(setting, text)


def _check(setting: str, path: str, mark: bytes, what: str) -> None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"{setting} must be a regular file, and {path} is none")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from None
    if b"-----BEGIN " not in content or mark not in content:
        raise ConfigError(f"{setting} must be a PEM file with a {what} in it, and {path} has none")
