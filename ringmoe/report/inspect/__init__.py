"""One page on a folder of shards: the account of every window, what was kept and dropped, and where it lies."""

from ringmoe.report.inspect.page import render

__all__ = ["render"]
