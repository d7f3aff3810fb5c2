"""Shards of places: a sample holds a tile of every scene of one piece of ground, cut at one window.

Planning, units and publishing follow those of single tiles (``ringmoe.data``) and run in the same builder; training a
model on unpaired tiles knows nothing of them.
"""

from ringmoe.data.places.manifest import PlaceManifest, open_folder
from ringmoe.data.places.plan import cut_places, make_place_plan
from ringmoe.data.places.publish import publish_places
from ringmoe.data.places.read import PlaceReader, PlaceSample

__all__ = [
    "PlaceManifest",
    "PlaceReader",
    "PlaceSample",
    "cut_places",
    "make_place_plan",
    "open_folder",
    "publish_places",
]
