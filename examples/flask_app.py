"""A Flask application, preforked: python examples/flask_app.py 127.0.0.1:8000

Try it: curl -F file=@README.md http://127.0.0.1:8000/count
"""

import os
import sys
from collections.abc import Iterator

from flask import Flask, Response, request

from prefork_server import serve

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return f"Hello {request.remote_addr} from process {os.getpid()}\n"


@app.post("/count")
def count() -> dict[str, int]:
    return {name: len(file.read()) for name, file in request.files.items()}


@app.get("/stream")
def stream() -> Response:
    def numbers() -> Iterator[str]:
        for n in range(5):
            yield f"{n}\n"

    return Response(numbers(), mimetype="text/plain")


if __name__ == "__main__":
    # The proxy in front of it, if there is one, is on this machine.
    serve(app, *sys.argv[1:], workers=4, forwarded_from=["127.0.0.1", "::1", "unix"])
