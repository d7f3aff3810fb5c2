"""What the HTTP side does with answers that are neither files nor failures of a moment."""

import gzip
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringmoe.data.remote.http import Http
from ringmoe.data.remote.transport import PermanentError, TransientError
from ringmoe.data.storage import RemoteConfig, folder_at
from ringmoe.errors import ShardError
from ringmoe.testing.ranks import free_port

PART = {"Content-Range": "bytes 2-5/9"}


@contextmanager
def _serving(server):
    """Runs a server until the context ends."""
    server.daemon_threads, server.handle_error = True, lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _server(answer):
    """A server whose answers are made by a function: path and attempt to status, headers and body."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            status, headers, body = answer(self.path, len(asked))
            self.send_response(status)
            for name, value in ({"Content-Length": len(body)} | headers).items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", asked


def _http(url, timeout=2.0):
    return Http(f"{url}/shards", connections=2, timeout=timeout)


def test_a_range_is_asked_for_as_it_is_and_nothing_is_compressed():
    with _server(lambda path, attempt: (206, PART, b"2345")) as (url, asked):
        assert _http(url).part("opt/x y.tar", 2, 4, 9) == b"2345"
    ((path, headers),) = asked
    assert path == "/shards/opt/x%20y.tar"
    assert headers["Range"] == "bytes=2-5"
    assert headers["Accept-Encoding"] == "identity"


def test_redirections_are_followed_with_the_range_but_only_within_the_web():
    with _server(lambda path, attempt: (206, PART, b"2345")) as (there, asked):
        with _server(lambda path, attempt: (302, {"Location": f"{there}/moved"}, b"see there")) as (url, _):
            assert _http(url).part("x", 2, 4, 9) == b"2345"
        assert [(path, headers["Range"]) for path, headers in asked] == [("/moved", "bytes=2-5")]
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        with (
            _server(lambda path, attempt, target=target: (302, {"Location": target}, b"")) as (url, asked),
            pytest.raises(PermanentError, match=f"redirects to {target}, which is not followed"),
        ):
            _http(url).part("x", 2, 4, 9)
        assert len(asked) == 1
    with (
        _server(lambda path, attempt: (307, {"Location": "/again"}, b"")) as (url, asked),
        pytest.raises(PermanentError, match="redirects more than 5 times"),
    ):
        _http(url).part("x", 2, 4, 9)
    assert len(asked) == 6


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
def test_what_will_not_change_is_not_tried_again(status):
    with _server(lambda path, attempt: (status, {}, b"no")) as (url, asked):
        with pytest.raises(ShardError, match=rf"shards/manifest\.json cannot be read: HTTP {status}"):
            folder_at(f"{url}/shards").read("manifest.json")
        assert len(asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_change_is_tried_again(status):
    with _server(lambda path, attempt: (status, {}, b"no") if attempt < 3 else (200, {}, b"{}")) as (url, asked):
        folder = folder_at(f"{url}/shards/")
        assert folder.read("manifest.json") == b"{}" == folder.read("manifest.json")
        assert len(asked) == 3
        assert folder.counts.faults() == {f"HTTP {status}": 2}
        assert str(folder.counts).startswith("3 requests, 2 bytes; 2 had to be repeated (2 x HTTP")


def test_a_wait_that_is_asked_for_is_kept():
    def answer(path, attempt):
        return (429, {"Retry-After": "1"}, b"") if attempt == 1 else (200, {}, b"{}")

    with _server(answer) as (url, _):
        begun = time.monotonic()
        folder_at(f"{url}/shards").read("manifest.json")
        assert time.monotonic() - begun >= 1
    with (
        _server(lambda path, attempt: (503, {"Retry-After": "when it suits"}, b"")) as (url, _),
        pytest.raises(TransientError, match="503") as caught,
    ):
        _http(url).whole("x")
    assert caught.value.wait == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((206, {"Content-Range": "bytes 2-5/10"}, b"2345"), "it has 10 bytes, but was written with 9"),
        ((206, {"Content-Range": "bytes 2-4/9"}, b"234"), "asked for were 2-5"),
        ((206, {}, b"2345"), "Content-Range ''"),
        ((206, PART | {"Content-Encoding": "gzip"}, b"2345"), "is encoded"),
        ((206, PART, b"234"), "ends after 3 of 4 bytes"),
        ((200, {}, b"012345678"), "the whole file"),
        ((206, PART | {"Content-Length": "4, 5"}, b"2345"), "the connection failed"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_told(answer, message):
    with (
        _server(lambda path, attempt: answer) as (url, _),
        pytest.raises(TransientError, match=message),
    ):
        _http(url).part("x", 2, 4, 9)


def test_a_manifest_that_a_server_compresses_regardless_is_told_as_such():
    packed = gzip.compress(b'{"format": 1}')
    with (
        _server(lambda path, attempt: (200, {"Content-Encoding": "gzip"}, packed)) as (url, _),
        pytest.raises(TransientError, match=r"is encoded \(gzip\)"),
    ):
        _http(url).whole("manifest.json")


def test_a_server_that_does_not_know_the_size_is_believed():
    with _server(lambda path, attempt: (206, {"Content-Range": "bytes 2-5/*"}, b"2345")) as (url, _):
        assert _http(url).part("x", 2, 4, 9) == b"2345"


def test_a_host_that_is_not_there_is_tried_and_named(unused_port):
    remote = RemoteConfig(attempts=3)
    with pytest.raises(ShardError, match=rf"127\.0\.0\.1:{unused_port}/shards/manifest\.json.*attempt 3.*refused"):
        folder_at(f"http://127.0.0.1:{unused_port}/shards", remote).read("manifest.json")


@pytest.fixture
def unused_port():
    return free_port()


def test_a_certificate_that_nobody_signed_is_refused_at_once(tmp_path):
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {tmp_path}/key -out {tmp_path}/cert"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with _serving(server) as port:
        folder = folder_at(f"https://localhost:{port}/shards")
        with pytest.raises(ShardError, match="certificate cannot be trusted"):
            folder.read("manifest.json")
        assert folder.counts.values()["requests"] == 1


def test_a_trickle_ends_at_its_deadline():
    """A byte now and then never meets a timeout of the connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-99/100")
            self.send_header("Content-Length", "100")
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b".")
                time.sleep(0.05)

        def log_message(self, *_):
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        begun = time.monotonic()
        with pytest.raises(TransientError, match=r"only \d+ of 100 bytes came in time"):
            _http(f"http://127.0.0.1:{port}", timeout=0.3).part("x", 0, 100, 100)
        assert time.monotonic() - begun < 3
