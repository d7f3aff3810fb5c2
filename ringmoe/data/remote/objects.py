"""Ranges of object stores, by the packages that fsspec knows for them; they find the credentials themselves."""

from typing import Any, Self

from ringmoe.data.remote.transport import PermanentError, TransientError
from ringmoe.errors import ConfigError


class Objects:
    """Files below a URL of an object store."""

    def __init__(self, store: Any, url: str, path: str) -> None:
        """Takes an open store.

        Args:
            store: An ``fsspec.AbstractFileSystem``.
            url: What the folder is called.
            path: What the store calls it.
        """
        self._store, self._url, self._path = store, url, path
        self._sizes: dict[str, int] = {}

    @classmethod
    def open(cls, url: str, package: str) -> Self:
        """Opens the store of a URL with the package for it.

        Raises:
            ConfigError: The package is not installed, or does not take the URL.
        """
        try:
            import fsspec

            store, path = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(
                f"{url}: this is read with the package {package}, which is not installed: pip install {package}"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{url} is not a folder that {package} takes: {error}") from error
        return cls(store, url, path.rstrip("/"))

    def url(self, name: str) -> str:
        """Where a file lies."""
        return f"{self._url}/{name}"

    def whole(self, name: str) -> bytes:
        """A file of unknown size."""
        content: bytes = self._ask("cat_file", name)
        return content

    def part(self, name: str, start: int, length: int, total: int) -> bytes:
        """Some bytes of a file."""
        if name not in self._sizes:
            self._sizes[name] = self._ask("info", name)["size"]
        if self._sizes[name] != total:
            raise PermanentError(f"it has {self._sizes[name]:,} bytes, but was written with {total:,}")
        content: bytes = self._ask("cat_file", name, start=start, end=start + length)
        if len(content) != length:
            raise TransientError("short answer", f"the answer has {len(content)} of {length} bytes")
        return content

    def _ask(self, what: str, name: str, **options: Any) -> Any:
        try:
            return getattr(self._store, what)(f"{self._path}/{name}", **options)
        except (FileNotFoundError, PermissionError) as error:
            raise PermanentError(f"{type(error).__name__}: {error}") from error
        except Exception as error:  # every package has errors of its own, and none says which of them pass
            raise TransientError(type(error).__name__, f"{type(error).__name__}: {error}") from error
