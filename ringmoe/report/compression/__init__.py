"""One page on a compressed model: sizes, speed, routing, spectra, errors, and what was not measured."""

from ringmoe.report.compression.page import render

__all__ = ["render"]
