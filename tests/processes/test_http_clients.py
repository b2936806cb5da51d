"""Clients that nobody here has written: curl, and a browser."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, ROOT, Server, Starter
from tests.processes.test_http import GET, HTTP, Client

LIMIT = 2_000_000  # bytes of a body
PROGRAM = f"""
    class Files(HTTPRequestHandler, SimpleHTTPRequestHandler):
        limits = Limits(body={LIMIT})
        keep_alive_timeout = 120
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {{"": "text/plain"}}

        def do_GET(self):
            if self.path == "/stream":  # without a length
                self.send_response(200)
                self.end_headers()
                for number in range(10):
                    self.wfile.write(b"%d\\n" % number)
            else:
                super().do_GET()
        def do_POST(self):
            body = self.rfile.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Fields", str(len(self.headers)))
            self.end_headers()
            self.wfile.write(body)
        do_PUT = do_POST
        def log_error(self, *_):
            pass

    serve_http(Files)
"""


@pytest.fixture
def site(start: Starter, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Files of the directory of the test, and what is sent there."""
    monkeypatch.setenv("WORKERS", "2")
    return start(HTTP + PROGRAM).all_ready(2)


def url(server: Server, path: str = "") -> str:
    assert isinstance(server.address, tuple)
    return "http://{}:{}/{}".format(*server.address, path)


# curl


class Curl:
    """``curl`` with these arguments, on this path of the site."""

    def __init__(self, site: Server) -> None:
        self.site = site

    def __call__(self, *words: str, path: str = "file", stdin: bytes = b"") -> Any:
        command = ["curl", "-sS", "-q", "--noproxy", "*", "-m", str(PATIENCE), *words]
        if path:
            command.append(url(self.site, path))
        return subprocess.run(command, input=stdin, capture_output=True, check=False)


@pytest.fixture
def curl(site: Server, tmp_path: Path) -> Curl:
    if not shutil.which("curl"):
        pytest.skip("there is no curl here")
    (tmp_path / "file").write_bytes(b"0123456789")
    return Curl(site)


TOLD = ["-w", "%{http_code} %{num_connects} %{size_download}\n", "-o", "/dev/null"]


def test_curl_asks_twice_on_one_connection(curl: Curl, site: Server) -> None:
    again = ["--next", "-sS", *TOLD, "-I", url(site, "file"), "--next", "-sS", *TOLD]
    done = curl(*TOLD, url(site, "stream"), *again)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"200 1 20\n200 0 0\n200 0 10\n"


def test_curl_sees_the_fields_of_a_file_and_no_body(curl: Curl) -> None:
    done = curl("-I", "-v")
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 10\r\n" in done.stdout and done.stdout.endswith(b"\r\n\r\n")
    assert b"left intact" in done.stderr


def test_curl_asks_for_a_part_and_gets_all_of_it(curl: Curl) -> None:
    assert curl("-r", "2-4", "-w", " %{http_code}").stdout == b"0123456789 200"


def test_curl_is_told_what_is_not_there(curl: Curl) -> None:
    done = curl("-f", path="none")
    assert done.returncode == 22 and b"404" in done.stderr


def test_curl_uploads_in_chunks_what_it_is_given(curl: Curl) -> None:
    body = os.urandom(1_500_000)
    for method in ("POST", "PUT"):
        done = curl("-X", method, "-T", "-", "-v", path="echo", stdin=body)
        assert b"> Transfer-Encoding: chunked" in done.stderr
        assert done.stdout == body


def test_curl_waits_to_be_told_to_go_on_with_a_long_body(curl: Curl) -> None:
    body = os.urandom(1_500_000)
    done = curl("--data-binary", "@-", "-H", "Expect: 100-continue", "-v", path="x", stdin=body)
    assert b"< HTTP/1.1 100 Continue" in done.stderr
    assert done.stdout == body


def test_curl_speaks_http_1_0(curl: Curl) -> None:
    done = curl("-0", "-i", path="stream")
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert b"Connection: close" in head and b"chunked" not in head
    assert body == b"".join(b"%d\n" % number for number in range(10))
    done = curl("-0", *TOLD, url(curl.site, "file"), *TOLD, "-H", "Connection: keep-alive")
    assert done.stdout == b"200 1 10\n200 0 10\n"


@pytest.mark.parametrize("expects", ["Expect: 100-continue", "Expect:"])
def test_curl_can_read_why_its_upload_was_refused(curl: Curl, expects: str) -> None:
    body = b"x" * (LIMIT + 1)
    # Not at once: of what is not wanted the server takes 1 MiB, and curl reads between its writes.
    slowly = ("--limit-rate", "1M")
    for _ in range(5):
        done = curl("--data-binary", "@-", "-H", expects, "-v", *slowly, path="x", stdin=body)
        assert (done.returncode, done.stdout.count(b"Error code: 413")) == (0, 1), done.stderr
        assert b"100 Continue" not in done.stderr
    chunked = curl("-H", "Transfer-Encoding: chunked", "--data-binary", "@-", stdin=body)
    assert b"Error code: 413" in chunked.stdout


def test_curl_may_send_a_hundred_fields(curl: Curl) -> None:
    fields = [word for number in range(97) for word in ("-H", f"X-{number}: {'y' * 400}")]
    done = curl("-X", "POST", *fields, "-i", path="x")  # Host, User-Agent, Accept
    assert b"\r\nX-Fields: 100\r\n" in done.stdout
    done = curl("-X", "POST", *fields, "-H", "One: more", "-i", path="x")
    assert done.stdout.startswith(b"HTTP/1.1 431 ")


def test_curl_gets_what_the_example_says(curl: Curl, start: Starter) -> None:
    example = Curl(start.script(ROOT / "examples" / "hello_http.py", "0").ready())
    for _ in range(2):
        done = example("-w", "%{num_connects}")
        assert re.fullmatch(rb"Hello from process \d+\n1", done.stdout)
    assert example("-f", "-X", "DELETE").returncode == 22


def test_curl_asks_the_flask_example(curl: Curl, start: Starter, tmp_path: Path) -> None:
    flask = Curl(start.script(ROOT / "examples" / "flask_app.py", "127.0.0.1:0").ready())
    done = flask("-w", "%{http_version} %{num_connects}\n", url(flask.site, "stream"), path="")
    assert done.stdout == b"0\n1\n2\n3\n4\n1.1 1\n"
    done = flask("-H", "X-Forwarded-For: 192.0.2.7", url(flask.site), path="")
    assert re.fullmatch(rb"Hello 192\.0\.2\.7 from process \d+\n", done.stdout)
    (tmp_path / "great").write_bytes(b"x" * 3_000_000)
    for expect in ("Expect: 100-continue", "Expect:"):
        done = flask("-F", f"file=@{tmp_path / 'great'}", "-H", expect, path="count")
        assert done.stdout == b'{"file":3000000}\n'
    chunked = ["-H", "Transfer-Encoding: chunked", "-F", f"file=@{tmp_path / 'great'}"]
    assert flask(*chunked, path="count").stdout == b'{"file":3000000}\n'
    assert flask("-I", path="none").stdout.startswith(b"HTTP/1.1 404 ")
    assert flask("-0", "-i", path="stream").stdout.startswith(b"HTTP/1.1 200 OK\r\n")


def test_curl_asks_the_files_example(curl: Curl, start: Starter, tmp_path: Path) -> None:
    words = "127.0.0.1:0", str(tmp_path)
    files = Curl(start.script(ROOT / "examples" / "files.py", *words).ready())
    assert files("-r", "2-4", "-w", " %{http_code}").stdout == b"0123456789 200"
    assert files("-I").stdout.lower().count(b"content-length: 10\r\n") == 1
    assert files("-o", os.devnull, "-w", "%{http_code}", path="../../etc/passwd").stdout == b"404"
    files.site.saw(r'^127.0.0.1 - - \[.*\] "GET /file HTTP/1.1" 200 10 "-" "curl/')


def test_curl_asks_the_https_example_on_one_connection(
    curl: Curl, start: Starter, tmp_path: Path
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl here")
    example = start.script(ROOT / "examples" / "https.py", "127.0.0.1:0").ready()
    https = Curl(example)
    where = f"https://localhost:{example.address[1]}/"
    options = ["--cacert", str(tmp_path / "localhost.pem"), "-w", "%{num_connects} "]
    done = https(*options, where, where, path="")
    answer = rb"Hello 127\.0\.0\.1 from process (\d+), by TLSv1\.[23]\n"
    assert re.fullmatch(answer + b"1 " + answer + b"0 ", done.stdout), done
    assert https(where, path="").returncode == 60  # nobody vouches for the certificate
    assert https("-f", "--http1.0", *options, where, path="").returncode == 0
    plain = https("-i", f"http://localhost:{example.address[1]}/", path="")
    assert plain.returncode != 0 and not plain.stdout
    assert https(*options, where, path="").stdout.startswith(b"Hello")


# A browser

PAGE = """<!doctype html>
<html><head><link rel="stylesheet" href="style.css"><script src="script.js"></script></head>
<body><img src="image.svg"><p id="said">nothing</p>
<script>
addEventListener("load", async () => {
    const post = body => fetch("/echo", {method: "POST", body}).then(answer => answer.text());
    const texts = await Promise.all([..."12345678"].map(each => post("posted " + each)));
    const stream = await (await fetch("/stream")).text();
    const blob = await post(new Blob(["x".repeat(300000)]));
    const refused = await fetch("/echo", {method: "POST", body: "x".repeat(2000001)});
    document.getElementById("said").textContent = [
        getComputedStyle(document.body).color, fromScript, document.images[0].naturalWidth,
        ...texts, stream.length, blob.length, refused.status, (await fetch("/none")).status,
    ].join("; ");
});
</script></body></html>
"""
SEEN = "rgb(1, 2, 3); a script; 7; {}; 20; 300000; 413; 404".format(
    "; ".join(f"posted {each}" for each in range(1, 9))
)
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--no-proxy-server",
]  # fmt: skip


def browsed(chromium: str, where: str, directory: Path, *options: str) -> str:
    """The document as it is when all of its scripts are done."""
    profile = f"--user-data-dir={directory / 'profile'}"
    words = [*options, profile, "--virtual-time-budget=20000", "--dump-dom", where]
    done = subprocess.run(
        [chromium, *QUIET, *words],
        capture_output=True,
        env={**os.environ, "HOME": str(directory)},
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr[-2000:]
    return done.stdout.decode()


@pytest.mark.timeout(150)
def test_a_browser_opens_the_https_example(start: Starter, tmp_path: Path) -> None:
    if not (chromium := shutil.which("chromium")) or not shutil.which("openssl"):
        pytest.skip("there is no chromium here, or no openssl")
    example = start.script(ROOT / "examples" / "https.py", "127.0.0.1:0").ready()
    where = f"https://localhost:{example.address[1]}/"
    seen = browsed(chromium, where, tmp_path, "--ignore-certificate-errors")
    assert re.search(r"Hello 127\.0\.0\.1 from process \d+, by TLSv1\.3", seen), seen


@pytest.mark.timeout(150)
def test_a_browser_shows_a_page_with_all_that_belongs_to_it(site: Server, tmp_path: Path) -> None:
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium here")
    (tmp_path / "page.html").write_text(PAGE)
    (tmp_path / "style.css").write_text("body { color: rgb(1, 2, 3) }")
    (tmp_path / "script.js").write_text("const fromScript = 'a script';")
    (tmp_path / "image.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"></svg>'
    )
    kept = [Client(site) for _ in range(8)]
    try:
        for client in kept:
            client.get(GET.replace(b"/ ", b"/script.js "))
        assert SEEN in browsed(chromium, url(site, "page.html"), tmp_path)
        for client in kept:
            client.get(GET.replace(b"/ ", b"/style.css "))
    finally:
        for client in kept:
            client.close()
