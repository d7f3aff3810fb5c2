"""Helpers for typed, frozen dataclasses and their files. Each component's own config stands beside the component."""

from ringmoe.config.files import from_dict, load_yaml, read_yaml, to_dict, to_yaml

__all__ = ["from_dict", "load_yaml", "read_yaml", "to_dict", "to_yaml"]
