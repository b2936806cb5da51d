"""Certificates for a test, by an authority that only this test trusts."""

import ssl
from pathlib import Path

import trustme


def make_certificate(directory: Path) -> ssl.SSLContext:
    """Write ``server.pem``, the certificate of localhost and its key, and return the context of
    a client that trusts it, and no other."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    (directory / "server.pem").chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context
