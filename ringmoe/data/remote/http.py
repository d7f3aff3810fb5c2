"""Ranges over HTTP and HTTPS. Nothing a server says is taken on trust: status, range, size and length are compared.

RFC 9110, sections 14 (range requests), 15 (status codes) and 10.2.3 (Retry-After).
"""

import re
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as AnyTimeoutError

from ringmoe.data.remote.transport import ANOTHER_SIZE, PermanentError, TransientError
from ringmoe.errors import ConfigError

_SCHEMES = ("http", "https")
_MOST_REDIRECTS = 5
_MOST_WHOLE = 1 << 30  # bytes of a file that is read without knowing its size: a manifest
_SLOWEST = 8 << 10  # bytes per second, below which an answer counts as stalled
_PASSING = {408, 416, 425, 429}  # of the client's faults those that another attempt may not meet
_SIZE = re.compile(r"bytes [\d*-]+/(\d+)")
_HEADERS = {"User-Agent": "ringmoe", "Accept-Encoding": "identity"}


class Http:
    """Files below a URL of an HTTP server that answers range requests."""

    def __init__(self, url: str, *, connections: int, timeout: float) -> None:
        """Checks the URL and connects to nothing yet.

        Raises:
            ConfigError: The URL names no host, or more than a folder.
        """
        parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
            raise ConfigError(
                f"{shown!r} should be https://host/path of a folder, without user, password, query (?) or fragment "
                "(#): they would be written into logs. What needs credentials is read by s3://, gs:// and the like"
            )
        self._url = url
        self._timeout = timeout
        self._etags: dict[str, str] = {}
        options: dict[str, Any] = {"maxsize": connections, "timeout": urllib3.Timeout(connect=timeout, read=timeout)}
        proxy = None if proxy_bypass(parts.hostname) else getproxies().get(parts.scheme)
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def url(self, name: str) -> str:
        """Where a file lies."""
        return f"{self._url}/{quote(name)}"

    def whole(self, name: str) -> bytes:
        """A file of unknown size."""
        response = self._get(name, {})
        try:
            _check_status(response)
            if response.status != HTTPStatus.OK:
                raise TransientError(f"HTTP {response.status}", f"HTTP {response.status} where 200 was expected")
            _check_encoding(response)
            announced = response.headers.get("Content-Length", "")
            length = int(announced) if announced.isdecimal() else None
            content = self._body(response, _MOST_WHOLE if length is None else min(length, _MOST_WHOLE), length)
        finally:
            _let_go(response)
        if len(content) == _MOST_WHOLE:
            raise PermanentError(f"it has {_MOST_WHOLE:,} bytes and more, which no manifest has")
        return bytes(content)

    def part(self, name: str, start: int, length: int, total: int) -> bytearray:
        """Some bytes of a file."""
        response = self._get(name, {"Range": f"bytes={start}-{start + length - 1}"})
        try:
            _check_size(response, total)
            _check_status(response)
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                raise TransientError(
                    "range ignored",
                    f"the server answers a range request with HTTP {response.status} and the whole file; tiles can "
                    "only be read from a server that supports ranges, as nginx, Apache and all object stores do",
                )
            self._check_range(response, name, start, length)
            return self._body(response, length, length)
        finally:
            _let_go(response)

    def _get(self, name: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """The head of the answer, after redirections to other web addresses."""
        url = self.url(name)
        for _ in range(_MOST_REDIRECTS + 1):
            try:
                response = self._pool.request(
                    "GET", url, headers={**_HEADERS, **headers}, preload_content=False, redirect=False, retries=False
                )
            except (HTTPError, OSError) as error:
                raise _failure(error) from error
            location = response.get_redirect_location()
            if not location:
                return response
            _let_go(response)
            url = _redirected(url, location)
        raise PermanentError(f"it redirects more than {_MOST_REDIRECTS} times, last to {url}")

    def _check_range(self, response: urllib3.BaseHTTPResponse, name: str, start: int, length: int) -> None:
        """Compares what the head of an answer says with what was asked for."""
        said, asked = response.headers.get("Content-Range", ""), f"{start}-{start + length - 1}"
        if not said.startswith(f"bytes {asked}/"):
            raise TransientError("wrong range", f"the answer has Content-Range {said!r}; asked for were {asked}")
        _check_encoding(response)
        etag = response.headers.get("ETag", "")
        before, self._etags[name] = self._etags.get(name, etag), etag
        if etag != before:  # once: a file that was put back may be the same, which the checksums of its tiles decide
            raise TransientError("changed", f"it was changed, or two servers disagree: ETag {etag}, before {before}")

    def _body(self, response: urllib3.BaseHTTPResponse, most: int, length: int | None) -> bytearray:
        """At most so many bytes behind the head, of ``length`` where that is known."""
        deadline = time.monotonic() + self._timeout + most / _SLOWEST
        content = bytearray()
        try:
            while len(content) < most and (piece := response.read1(most - len(content), decode_content=False)):
                content += piece
                if time.monotonic() > deadline:
                    raise TransientError("stalled", f"only {len(content)} of {most} bytes came in time")
        except (HTTPError, OSError) as error:
            raise _failure(error, f" after {len(content)} bytes") from error
        if length is not None and len(content) < min(length, most):
            raise TransientError("short answer", f"the answer ends after {len(content)} of {length} bytes")
        return content


def _check_size(response: urllib3.BaseHTTPResponse, total: int) -> None:
    """Compares the size that an answer tells, also one without content because it is the size that is wrong (416)."""
    found = _SIZE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found and int(found[1]) != total:
        raise TransientError(ANOTHER_SIZE, f"it has {int(found[1]):,} bytes, but was written with {total:,}")


def _check_status(response: urllib3.BaseHTTPResponse) -> None:
    """Raises what a status means that is not one of success."""
    status = response.status
    if status < 400:
        return
    text = f"HTTP {status} {response.reason or ''}".rstrip()
    if status < 500 and status not in _PASSING:
        raise PermanentError(text)
    try:
        wait = urllib3.Retry().get_retry_after(response) or 0.0
    except InvalidHeader:
        wait = 0.0
    raise TransientError(f"HTTP {status}", text, wait=wait)


def _check_encoding(response: urllib3.BaseHTTPResponse) -> None:
    """Refuses an answer that is compressed on its way: the bytes of the file itself are asked for."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise TransientError(
            "encoded",
            f"the answer is encoded ({encoding}), though the bytes as they are were asked for; let the server not "
            "compress what lies in this folder",
        )


def _redirected(url: str, location: str) -> str:
    """Where a redirection leads."""
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in _SCHEMES or (url.startswith("https:") and scheme != "https"):
        raise PermanentError(f"it redirects to {target}, which is not followed: only https, and http from http")
    return target


def _failure(error: Exception, when: str = "") -> TransientError | PermanentError:
    """What an error of the connection means."""
    if isinstance(error, SSLError) and any(isinstance(each, ssl.SSLCertVerificationError) for each in error.args):
        return PermanentError(f"its certificate cannot be trusted: {error}")
    if isinstance(error, AnyTimeoutError | TimeoutError) and not isinstance(error, NewConnectionError):
        return TransientError("timeout", f"no answer in time{when}")
    text = str(error).rpartition("): ")[2]  # what stands before it is the address
    return TransientError("connection lost", f"the connection failed{when}: {text or type(error).__name__}")


def _let_go(response: urllib3.BaseHTTPResponse) -> None:
    """Back into the pool where all of an answer was read; a connection with a rest on it is closed."""
    if not response.closed:
        response.close()
    response.release_conn()
