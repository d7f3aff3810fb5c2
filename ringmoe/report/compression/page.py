"""From what is known of a compressed model to one page of HTML that needs nothing else."""

from collections.abc import Sequence
from statistics import median, quantiles

from ringmoe.report import html
from ringmoe.report.compression import charts
from ringmoe.report.compression.view import View

_PACKAGE = "ringmoe.report.compression"
_PART_COLOURS = {
    "specialised": "c0",
    "collaborative": "c3",
    "shared": "c4",
    "attention": "c7",
    "merging": "c5",
    "embedding": "c2",
    "positions": "c8",
    "routers": "c6",
    "norms": "c1",
    "decoders": "c11",
}


def render(view: View) -> str:
    """Draws the page.

    Args:
        view: What is known; the page says of the rest that it was not measured.
    """
    places = [str(layer.number) for layer in view.layers]
    return html.render(
        _PACKAGE,
        view=view,
        parts=_PART_COLOURS,
        spread=spread,
        panels=charts.heat_map(view.heat) if view.heat else [],
        heat_key=charts.heat_key(),
        cell=charts.CELL,
        speed_chart=_speed_chart(view),
        error_chart=charts.chart(_layer_errors(view), places) if _layer_errors(view) else None,
        energy_chart=charts.chart(_energies(view), places, most=1.0) if _energies(view) else None,
        spectra=charts.spectra(view.layers),
        panel=charts.PANEL,
    )


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return (values[0],) * 3
    low, _, high = quantiles(values, n=4)
    return median(values), low, high


def _speed_chart(view: View) -> charts.Chart | None:
    values: list[tuple[str, int, int, float]] = []
    places: list[str] = []
    for speed in view.speeds:
        for series, (name, rates) in enumerate((("before", speed.before), ("after", speed.after))):
            if rates:
                values += [(f"{speed.key} {name}: {rate:.1f} images/s", len(places), series, rate) for rate in rates]
                places.append(f"{speed.key} {name}")
    return charts.chart(values, places) if values else None


def _layer_errors(view: View) -> list[tuple[str, int, int, float]]:
    """What each layer is off by, on the tiles to judge by and on those of calibration."""
    found = []
    for place, layer in enumerate(view.layers):
        for series, (where, error) in enumerate((("judged", layer.error), ("calibrated", layer.calibration_error))):
            if error is not None:
                found.append((f"block {layer.number}, {where}: {error:.3f}", place, series, error))
    return found


def _energies(view: View) -> list[tuple[str, int, int, float]]:
    """What each truncated matrix retains, or, where no more is known, the least of a block's."""
    found = []
    for place, layer in enumerate(view.layers):
        for spectrum in layer.spectra:
            words = f"block {layer.number}, {spectrum.expert}, {spectrum.matrix}: {spectrum.energy:.1%}"
            found.append((words, place, int(spectrum.matrix != "W1"), spectrum.energy))
        for matrix, energy in layer.energies.items() if not layer.spectra else ():
            found.append((f"block {layer.number}, {matrix}: at least {energy:.1%}", place, int(matrix != "W1"), energy))
    return found
