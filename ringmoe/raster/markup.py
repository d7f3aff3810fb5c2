"""Metadata files of products, read without trust: bounded in size, no document types, no entities, no paths outward."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ringmoe.raster.scene import UnusableError

_MOST_BYTES = 64 << 20  # the largest annotation of Sentinel-1 has some ten megabytes
_MOST_DEPTH = 100

_ODL_LINE = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*")

Groups = dict[str, dict[str, str]]
"""Entries of a metadata file in two levels: group, name, value."""


@dataclass(frozen=True)
class Document:
    """An XML file; names are compared without their namespace prefixes.

    Attributes:
        path: The file, for messages.
        root: Its outermost element.
    """

    path: Path
    root: Element

    @classmethod
    def load(cls, path: Path) -> "Document":
        """Parses an XML file.

        Raises:
            UnusableError: It is missing, too large, no XML, or declares a document type or entities.
        """
        return cls(path, _parse(path, read_bytes(path)))

    def all(self, path: str, below: Element | None = None) -> list[Element]:
        """All elements at a path of names.

        Raises:
            UnusableError: There is none.
        """
        found = (self.root if below is None else below).findall(path)
        if not found:
            raise _missing(self.path, path)
        return found

    def has(self, path: str) -> bool:
        """Whether there is an element at a path of names."""
        return self.root.find(path) is not None

    def text(self, path: str, below: Element | None = None) -> str:
        """The text of the first element at a path of names.

        Raises:
            UnusableError: It is not there or empty.
        """
        text = (self.all(path, below)[0].text or "").strip()
        if not text:
            raise _missing(self.path, path)
        return text

    def numbers(self, path: str, below: Element | None = None) -> list[float]:
        """The numbers of the first element at a path of names.

        Raises:
            UnusableError: It is not there, or holds something else.
        """
        text = self.text(path, below)
        return [number(word, self.path, path) for word in text.split()]


def read_bytes(path: Path) -> bytes:
    """The content of a metadata file.

    Raises:
        UnusableError: It is not there, cannot be read, or is too large for what it should be.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MOST_BYTES:
            raise UnusableError(
                "unreadable", f"{path.name} has {size:,} bytes; expected a metadata file of at most {_MOST_BYTES:,}"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnusableError("missing_part", f"{path.name} is missing; fetch the product again") from error
    except OSError as error:
        raise UnusableError("unreadable", f"{path.name} cannot be read ({error.strerror or error})") from error


def groups(path: Path) -> Groups:
    """The groups of a Landsat metadata file (``_MTL``) in any of its three forms: JSON, XML, or text (ODL).

    Raises:
        UnusableError: The file is missing or damaged.
    """
    content, kind = read_bytes(path), path.suffix.lower()
    try:
        if kind == ".json":
            (whole,) = json.loads(content).values()
            return {name: {key: str(value) for key, value in group.items()} for name, group in whole.items()}
        if kind == ".xml":
            return {group.tag: {entry.tag: entry.text or "" for entry in group} for group in _parse(path, content)}
        return _odl(content.decode())
    except (ValueError, AttributeError, RecursionError) as error:
        raise UnusableError("unreadable", f"{path.name} is damaged ({error}); fetch the product again") from error


def entry(found: Groups, path: Path, group: str, name: str) -> str:
    """One entry of a metadata file.

    Raises:
        UnusableError: It is not there.
    """
    value = found.get(group, {}).get(name, "").strip()
    if not value:
        raise _missing(path, f"{group}/{name}")
    return value


def number(text: str, path: Path, name: str) -> float:
    """A number from a metadata file.

    Raises:
        UnusableError: It is none.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise UnusableError("unreadable", f"{path.name}: {name} is {text!r}; expected a number") from error
    if value != value or value in (float("inf"), float("-inf")):
        raise UnusableError("unreadable", f"{path.name}: {name} is {text!r}; expected a finite number")
    return value


def inside(root: Path, name: str, where: Path) -> str:
    """A file that metadata names, relative to the product's folder.

    Raises:
        UnusableError: It would lie outside of the folder.
    """
    plain = PurePosixPath(name.strip())
    escapes = plain.is_absolute() or ".." in plain.parts or "\\" in name or "\0" in name
    if escapes or not Path(os.path.realpath(root / plain)).is_relative_to(os.path.realpath(root)):
        raise UnusableError(
            "conflict", f"{where.name} names the file {name!r}, which is outside of the product's folder"
        )
    return plain.as_posix()


def _missing(path: Path, name: str) -> UnusableError:
    return UnusableError("missing_part", f"{path.name} has no {name}; the file is damaged or of another product")


def _odl(text: str) -> Groups:
    """Groups of the text form; the outermost group holds all others."""
    found: Groups = {}
    stack: list[str] = []
    for line in text.splitlines():
        if (match := _ODL_LINE.fullmatch(line)) is None:
            continue
        name, value = match[1], match[2].strip('"')
        if name == "GROUP":
            stack.append(value)
        elif name == "END_GROUP":
            if not stack or stack.pop() != value:
                raise ValueError(f"END_GROUP = {value} ends no group")
        elif stack:
            found.setdefault(stack[-1], {})[name] = value
    if stack or not found:
        raise ValueError("it ends inside a group" if stack else "it has no groups")
    return found


def _parse(path: Path, content: bytes) -> Element:
    """The outermost element; names lose their namespace prefixes.

    Raises:
        UnusableError: It is no XML, too deep, or declares a document type or entities.
    """
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEPTH:
            raise UnusableError("unreadable", f"{path.name} nests more than {_MOST_DEPTH} elements")
        builder.start(name.rpartition(":")[2], attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition(":")[2])

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refusing(path)
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError) as error:
        raise UnusableError("unreadable", f"{path.name} is cut off or no XML ({error}); fetch it again") from error
    root: Element = builder.close()
    return root


def _refusing(path: Path) -> Callable[..., Any]:
    def refuse(*_: Any) -> None:
        raise UnusableError(
            "unreadable", f"{path.name} declares a document type or entities, which no product's metadata needs"
        )

    return refuse
