"""A real HTTP server of a folder, on this machine, that answers range requests; and one that fails on purpose.

What goes wrong is a pure function of seed, file, range and how often it was asked for, so that the same requests meet
the same faults in any order.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Self

from ringmoe import counter

Fault = str
"""One of ``FAULTS``, or nothing for a good answer."""

FAULTS: tuple[Fault, ...] = (
    "503",
    "429",
    "416",
    "hang up",  # no answer at all
    "drop",  # half of the bytes, then the connection is closed
    "stall",  # half of the bytes, then nothing
    "whole",  # 200 and the whole file, whatever range was asked for
    "short",  # half of the range, said honestly
    "elsewhere",  # another range
    "flip",  # one bit of the content is wrong
    "resized",  # the file is said to have another size
    "changed",  # another ETag
)
Plan = Callable[[str, str, int], Fault]
"""Path, range as asked for (or nothing) and number of the attempt, from 0, to what shall go wrong."""


def no_faults(path: str, asked: str, attempt: int) -> Fault:
    """Every answer is good."""
    return ""


def seeded_faults(seed: int, share: float, kinds: tuple[Fault, ...] = FAULTS) -> Plan:
    """A share of all requests fails, in ways drawn from ``kinds``."""

    def plan(path: str, asked: str, attempt: int) -> Fault:
        key = counter.key(seed, path, asked, attempt) % (1 << 32)
        place = key / (1 << 32)
        if place >= share or not asked:  # a manifest has no range, and its faults are tested by themselves
            return ""
        return kinds[int(place / share * len(kinds))]

    return plan


class FolderServer:
    """Serves a folder on a port of its own until the context ends.

    Attributes:
        url: Where the folder is.
        requests: How often each pair of path and range was asked for.
        failed: How often each fault was played.
        plan: What goes wrong; may be replaced at any time.
        headers: Sent with every answer.
        stall: Seconds for which a stalled answer keeps its connection.
        delay: Seconds before every answer.
    """

    def __init__(self, root: Path, plan: Plan = no_faults, *, stall: float = 1.0, delay: float = 0.0) -> None:
        self.root, self.plan, self.stall, self.delay = root, plan, stall, delay
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[Fault] = Counter()
        self.headers: Mapping[str, str] = {}
        self._lock = Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/{root.name}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_fault(self, path: str, asked: str) -> Fault:
        """What shall go wrong with this request, which is counted."""
        with self._lock:
            attempt = self.requests[path, asked]
            self.requests[path, asked] += 1
        fault = self.plan(path, asked, attempt)
        with self._lock:
            self.failed[fault] += 1
        return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that the other side has closed."""


def _handler(server: FolderServer) -> type[BaseHTTPRequestHandler]:
    """The class that answers for a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            time.sleep(server.delay)
            asked = self.headers.get("Range", "")
            fault = server.next_fault(self.path, asked)
            path = server.root.parent / self.path.lstrip("/")
            if fault == "hang up":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault.isdecimal():
                self._answer(int(fault), b"", {"Retry-After": "0"})
            elif ".." in self.path or not path.is_file():
                self._answer(404, b"no such file", {})
            elif asked and fault != "whole":
                self._answer_range(path, asked, fault)
            else:
                self._answer(200, path.read_bytes(), {})

        def _answer_range(self, path: Path, asked: str, fault: Fault) -> None:
            first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
            size = path.stat().st_size
            if fault == "elsewhere":
                first, last = first + 1, last + 1
            if fault == "short":
                last = (first + last) // 2
            with path.open("rb") as file:
                file.seek(first)
                content = bytearray(file.read(last - first + 1))
            if fault == "flip":
                content[len(content) // 2] ^= 1
            told = size + 1 if fault == "resized" else size
            headers = {"Content-Range": f"bytes {first}-{first + len(content) - 1}/{told}"}
            if fault == "changed":
                headers["ETag"] = '"another"'
            self._answer(206, bytes(content), headers, fault)

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str], fault: Fault = "") -> None:
            self.send_response(status)
            for name, value in (
                {"ETag": '"first"', "Content-Length": str(len(content))} | dict(server.headers)
            ).items():
                if name not in headers:
                    self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if fault in ("drop", "stall"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                time.sleep(server.stall if fault == "stall" else 0)
                self.close_connection = True
            else:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Writes no log."""

    return Handler
