"""One attempt to get bytes from elsewhere: what all ways have in common, and which way belongs to which URL."""

from typing import Protocol

from ringmoe.data.storage import RemoteConfig, scheme_of
from ringmoe.errors import ConfigError

OBJECT_STORES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""Scheme to the package that reads it through fsspec; it knows the credentials, which are never part of a URL."""


ANOTHER_SIZE = "another size"


class TransientError(Exception):
    """An attempt failed; the next one may not.

    Attributes:
        kind: A few words that are the same for all faults of this kind, for counting.
        wait: Seconds for which the other side wants to be left alone.
    """

    def __init__(self, kind: str, message: str = "", *, wait: float = 0.0) -> None:
        super().__init__(message or kind)
        self.kind = kind
        self.wait = wait


class PermanentError(Exception):
    """An attempt failed, and so will every other."""


class Transport(Protocol):
    """A way to files below one URL. Any number of threads may use it at the same time."""

    def url(self, name: str) -> str:
        """Where a file lies."""

    def whole(self, name: str) -> bytes:
        """A file of unknown size.

        Raises:
            TransientError: It did not come, or not in full.
            PermanentError: It cannot be had.
        """

    def part(self, name: str, start: int, length: int, total: int) -> bytearray | bytes:
        """Some bytes of a file.

        Args:
            name: The file.
            start: First byte.
            length: How many bytes; at least 1.
            total: Size that the whole file should have.

        Raises:
            TransientError: They did not come, or not these, or the file has another size.
            PermanentError: They cannot be had.
        """


def connect(url: str, config: RemoteConfig) -> Transport:
    """The way to a URL; nothing is sent yet.

    Raises:
        ConfigError: The URL is of a kind that is not read, or the package that reads it is not installed.
    """
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        from ringmoe.data.remote.http import Http

        return Http(url, connections=config.connections, timeout=config.timeout)
    if scheme in OBJECT_STORES:
        from ringmoe.data.remote.objects import Objects

        return Objects.open(url, OBJECT_STORES[scheme])
    known = ", ".join(f"{each}://" for each in ("https", "http", *OBJECT_STORES))
    raise ConfigError(f"{url!r}: shards are not read by {scheme}://; they are from local folders and by {known}")
