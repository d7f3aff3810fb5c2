"""Frozen dataclasses to plain values and back, with errors that name the field and what it may hold."""

import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from ringmoe.errors import ConfigError

T = TypeVar("T")

_brief = Repr()  # a value in a message, cut short: aliases in a small YAML file may stand for billions of entries
_brief.maxlevel, _brief.maxstring, _brief.maxother = 2, 100, 100

# kept, because a manifest holds tens of thousands of records of few types
_hints: Callable[[Any], dict[str, Any]] = lru_cache(typing.get_type_hints)


def to_dict(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain values that JSON and YAML can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_dict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Builds the dataclass ``cls`` from plain values.

    Args:
        cls: A dataclass.
        values: Field names to plain values; nested dataclasses as mappings, tuples as lists.
        where: What is being read, for messages.

    Raises:
        ConfigError: Unknown or missing field, or a value of the wrong type.
    """
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            near = get_close_matches(name, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(hints)}"
            raise ConfigError(f"{where or cls.__name__}: no setting {name!r}{hint}")
    known = {name: _convert(hints[name], value, f"{where}.{name}" if where else name) for name, value in values.items()}
    try:
        return cls(**known)
    except TypeError as error:
        raise ConfigError(f"{where or cls.__name__}: {error}") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or is not a mapping.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or says something twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainValues)
    except RecursionError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: its brackets nest too deep") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error


class _PlainValues(yaml.SafeLoader):
    """YAML's safe loader, which makes plain values only, but a key that stands twice is an error: one would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and counts[key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def to_yaml(value: Any) -> str:
    """A dataclass as YAML text in the order of its fields."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type that ``hint`` asks for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} is {_brief.repr(value)}; it may be {', '.join(repr(a) for a in arguments)}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {_brief.repr(value)}; expected a mapping")
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{where} is {_brief.repr(value)}; expected a mapping with {', '.join(f.name for f in fields(hint))}"
            )
        return from_dict(hint, value, where=where)
    return _convert_plain(hint, value, where)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _convert(argument, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError("; or ".join(errors) or f"{where} is {_brief.repr(value)}; expected null")


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {_brief.repr(value)}; expected a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        if is_dataclass(arguments[0]) and isinstance(arguments[0], type):
            return _convert_records(arguments[0], value, where)
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(arguments) != len(value):
        raise ConfigError(f"{where} has {len(value)} values; expected {len(arguments)}")
    return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))


def _convert_records(cls: type[T], values: Sequence[Any], where: str) -> tuple[T, ...]:
    """Many dataclasses of one type; what holds just the plain values that its fields ask for is taken as it is."""
    hints = _hints(cls)
    names, kinds = hints.keys(), tuple(hints.values())
    is_plain = set(kinds) <= {int, str, bool}
    return tuple(
        cls(**value)
        if is_plain
        and type(value) is dict
        and value.keys() == names
        and tuple(map(type, map(value.get, names))) == kinds
        else _convert(cls, value, f"{where}[{i}]")
        for i, value in enumerate(values)
    )


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, str):
        # YAML reads 1e-4 as text: only 1.0e-4 is a number to it
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(
        f"{where} is {_brief.repr(value)} ({type(value).__name__}); expected {getattr(hint, '__name__', hint)}"
    )
