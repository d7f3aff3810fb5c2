"""One small scene, drawn once and looked at by all the tests here."""

import pytest

from ringmoe.raster.synth.scene import Scene


@pytest.fixture(scope="session")
def scene():
    return Scene(seed=3, number=0, size=320)


@pytest.fixture(scope="session")
def landscape(scene):
    return scene.first.landscape


@pytest.fixture(scope="session")
def ground(scene):
    return scene.first.ground
