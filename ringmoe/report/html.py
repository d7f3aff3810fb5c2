"""Pages of HTML that need nothing else: no network, no script, no other file."""

from importlib.resources import files as resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(package: str, **values: Any) -> str:
    """Fills the ``page.html`` of a package, in the style that all pages share.

    Args:
        package: Name of the package, whose template writes the style with ``{{ style }}``.
        values: What the template speaks of; texts are escaped.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup((resources(__package__) / "style.css").read_text(encoding="utf-8"))
    template = environment.from_string((resources(package) / "page.html").read_text(encoding="utf-8"))
    return template.render(style=style, **values)
