"""What a scene gives away: images that lie on each other, changes that are changes, tracks that follow vehicles."""

import numpy as np
import pytest

from ringmoe.raster.synth import optics
from ringmoe.raster.synth.covers import Cover
from ringmoe.raster.synth.fields import dilate, shift
from ringmoe.raster.synth.scene import Scene


@pytest.fixture(scope="module")
def rasters(scene):
    return {raster.path: raster for raster in scene.rasters()}


def _pixels(rasters, name):
    return rasters[name].pixels_CHW.astype(complex if "sar_l1" in name else float)


@pytest.mark.parametrize(
    ("name", "band", "covers"),
    [
        ("optical.tif", 2, (Cover.ROAD, Cover.BUILDING)),
        ("multispectral.tif", 3, (Cover.WATER,)),
        ("sar_l1.tif", 0, (Cover.WATER, Cover.ROAD)),
        ("sar_l2.tif", 0, (Cover.WATER, Cover.ROAD)),
    ],
)
def test_every_image_lies_on_the_cover_map(rasters, name, band, covers):
    """Moved by even one pixel, covers that stand out in a band fit the image worse."""
    image_HW = np.log(np.abs(_pixels(rasters, name)[band]) + 0.01)
    mask_HW = np.isin(rasters["cover.tif"].pixels_CHW[0], covers)
    offsets = [(rows, cols) for rows in range(-2, 3) for cols in range(-2, 3)]
    fits = [abs(np.corrcoef(shift(mask_HW, *o).ravel(), image_HW.ravel())[0, 1]) for o in offsets]
    assert offsets[int(np.argmax(fits))] == (0, 0)
    assert max(fits) > 0.3


def test_water_shows_one_look_in_the_written_image(rasters, ground):
    inner_HW = ~dilate(ground.cover_HW != Cover.WATER, 4)
    intensity_HW = np.abs(_pixels(rasters, "sar_l1.tif")[3]) ** 2
    looks = []
    for row in range(0, 320 - 16, 8):
        for col in range(0, 320 - 16, 8):
            window = (slice(row, row + 16), slice(col, col + 16))
            if inner_HW[window].all():
                values = intensity_HW[window]
                looks.append(values.mean() ** 2 / values.var())
    assert len(looks) >= 5
    assert np.mean(looks) == pytest.approx(1.0, abs=0.15)


def test_outside_the_change_mask_the_dates_differ_by_noise(rasters):
    change_HW = rasters["later/change.tif"].pixels_CHW[0]
    assert set(np.unique(change_HW)) == {0, 1, 2}
    assert 0.01 < (change_HW == 1).mean() < 0.5
    noise = np.sqrt(2) * np.sqrt(optics._CAMERA_NOISE_DN**2 + 1 / 12)
    difference_CHW = _pixels(rasters, "later/optical.tif") - _pixels(rasters, "optical.tif")
    same = difference_CHW[:, change_HW == 0]
    assert same.std() == pytest.approx(noise, rel=0.02)
    assert np.abs(same).max() < 6.5 * noise
    assert np.abs(difference_CHW[:, change_HW == 1]).mean() > 5 * noise
    bands_CHW = (_pixels(rasters, "later/multispectral.tif") - _pixels(rasters, "multispectral.tif")) / 10000
    assert np.abs(bands_CHW[:, change_HW == 0]).max() < 6.5 * np.sqrt(2) * optics._SCANNER_NOISE


def test_radar_power_changes_only_inside_the_mask(scene, rasters):
    change_HW = rasters["later/change.tif"].pixels_CHW[0]
    before, after = scene.first.echoes, scene.later.echoes
    same_HW = change_HW == 0
    for name in ("hh_HW", "hv_HW", "vv_HW", "hhvv_HW"):
        assert (getattr(before, name)[same_HW] == getattr(after, name)[same_HW]).all()
    speckles = [np.abs(_pixels(rasters, f"{folder}sar_l1.tif")[0][same_HW]) ** 2 for folder in ("", "later/")]
    assert np.mean(speckles[0]) == pytest.approx(np.mean(speckles[1]), rel=0.05)
    assert not np.array_equal(*speckles)


def test_class_one_is_land_and_class_two_is_not(scene, rasters):
    change_HW = rasters["later/change.tif"].pixels_CHW[0]
    one, two = scene.first.ground, scene.later.ground
    moving_HW = np.isin(one.cover_HW, (Cover.SHIP, Cover.VEHICLE)) | np.isin(two.cover_HW, (Cover.SHIP, Cover.VEHICLE))
    assert not (moving_HW & (change_HW == 1)).any()
    assert (change_HW[one.cover_HW != two.cover_HW] > 0).all()
    same_HW = (one.cover_HW == two.cover_HW) & (one.height_HW == two.height_HW)
    same_HW &= (one.albedo_CHW == two.albedo_CHW).all(axis=0)
    assert not (same_HW & (change_HW == 1)).any()


def test_tracks_follow_vehicles_over_roads(scene, rasters, landscape):
    rows = np.array([[float(v) for v in line.split(",")] for line in scene.tracks().splitlines()])
    col, row, size = scene.frame_window
    assert (rows[:, 6:] == (1, -1, -1, -1)).all()
    assert set(rows[:, 0]) == set(range(1, 9))
    left, top, width, height = rows[:, 2:6].T
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= size
    assert len({(frame, track) for frame, track in rows[:, :2]}) == len(rows)
    centres = np.stack((left + width / 2, top + height / 2), axis=-1)
    at = (centres[:, 1] + row).astype(int), (centres[:, 0] + col).astype(int)
    assert landscape.road_HW[at].all()
    moved = [np.ptp(centres[rows[:, 1] == track], axis=0).max() for track in np.unique(rows[:, 1])]
    assert np.median(moved) > 4.0

    frames = np.stack([rasters[f"frames/frame_{i:03d}.tif"].pixels_CHW for i in range(8)]).astype(float)
    assert frames.shape == (8, 3, size, size)
    motion = np.abs(frames - np.median(frames, axis=0)).max(axis=1)
    boxed = np.zeros(motion.shape, dtype=bool)
    for frame, x, y, w, h in rows[:, [0, 2, 3, 4, 5]]:
        boxed[int(frame) - 1, int(y) : int(np.ceil(y + h)) + 1, int(x) : int(np.ceil(x + w)) + 1] = True
    assert motion[boxed].mean() > 5 * motion[~boxed].mean()


def test_frames_are_cut_from_the_scene(scene, rasters):
    frame, whole = rasters["frames/frame_000.tif"], rasters["optical.tif"]
    col, row, size = scene.frame_window
    assert frame.corner == (col, row)
    part_CHW = whole.pixels_CHW[:, row : row + size, col : col + size].astype(float)
    inner = (slice(None), slice(30, -30), slice(30, -30))  # shadows of what stands outside the frame are missing
    assert np.abs(frame.pixels_CHW - part_CHW)[inner].mean() < 2.0
    assert scene.transform(frame.corner)[2] - scene.transform()[2] == col
    assert scene.transform(frame.corner)[5] - scene.transform()[5] == -row


def test_objects_of_both_dates(scene):
    dates = scene.objects()
    assert set(dates) == {"objects.json", "later/objects.json"}
    for time, boxes in dates.values():
        assert time.tzinfo is not None
        assert {box.kind for box in boxes} == {"building", "ship", "vehicle"}


def test_scenes_lie_in_different_places():
    places = {(Scene(0, number, 192).crs, Scene(0, number, 192).origin) for number in range(6)}
    assert len(places) == 6
