"""HTTPS with kept connections that cost no worker. Open https://127.0.0.1:8443/

Serve: python https.py [ADDRESS [CERTFILE [KEYFILE]]] - in PEM; without a KEYFILE the key is in
the CERTFILE, too. Without either, a certificate for localhost is made in this directory by the
openssl command, as localhost.pem, for a browser to warn of. Ask it, in another terminal:
curl --cacert localhost.pem https://localhost:8443/
"""

import os
import subprocess
import sys

from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

MADE_HERE = "localhost.pem"


class Hello(HTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        who, tls = self.client_address[0], self.connection.version()
        body = f"Hello {who} from process {os.getpid()}, by {tls}\n".encode()
        self.respond(200, body, "text/plain; charset=utf-8")


def make_certificate(path: str) -> None:
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
    command += ["-subj", "/CN=localhost", "-addext", names, "-keyout", path]
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # for us alone
    try:
        made = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # the key is in path
        with open(path, "ab") as both:
            both.write(made.stdout)
    except BaseException:
        os.unlink(path)
        raise


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8443"
    certfile = sys.argv[2] if len(sys.argv) > 2 else MADE_HERE
    keyfile = sys.argv[3] if len(sys.argv) > 3 else None
    if certfile == MADE_HERE and not os.path.exists(certfile):
        make_certificate(certfile)
    with PreforkHTTPServer(address, Hello, workers=4, certfile=certfile, keyfile=keyfile) as server:
        server.serve_forever()
