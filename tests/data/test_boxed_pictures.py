"""Boxes of a folder go with its pictures: through cuts, mirrors, limits and crops, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fill import inp
from folders import encoded, fill, line, shade
from sfumato.boxes import WHOLE, Box, Layout, Window, middle
from sfumato.data import opened
from sfumato.data.cropped import Cropped, window
from sfumato.data.limits import Counted, Limits, applied
from sfumato.data.part import Mirrored, Part
from sfumato.data.scenes import Scenes
from sfumato.io import pictures

WIDE, TALL = (40, 20), (20, 60)


def marked(sides: tuple[int, int], corners: tuple[int, int, int, int]) -> bytes:
    """A black picture with a white rectangle."""
    picture = Image.new("RGB", sides)
    picture.paste((255, 255, 255), corners)
    return encoded(picture)


def folder(root: Path, **objects: list[tuple[str, list[float]]]) -> Path:
    """Boxes in pixels by the stem of their picture."""
    rows = [
        line(file_name=f"{name}.png", objects={"bbox": [box for _, box in some], "label": [label for label, _ in some]})
        for name, some in objects.items()
    ]
    return fill(root, {"metadata.jsonl": "".join(rows)})


def two(root: Path) -> Path:
    """A wide picture, a tall one, and boxes around what is white in them."""
    fill(root, {"a.png": marked(WIDE, (12, 4, 20, 16)), "b.png": marked(TALL, (4, 24, 12, 36))})
    return folder(root, a=[("ant", [12, 4, 8, 12]), ("left", [0, 0, 10, 20])], b=[("bee", [4, 24, 8, 12])])


def white(image: torch.Tensor) -> tuple[int, int, int, int]:
    """The edges of what is white."""
    seen = (image[0] > 0).nonzero()
    (top, left), (bottom, right) = seen.amin(0).tolist(), (seen.amax(0) + 1).tolist()
    return left, top, right, bottom


def edges(box: Box, image: torch.Tensor) -> tuple[float, float, float, float]:
    height, width = image.shape[1:]
    return box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height


# Cuts and mirrors -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_are_where_things_are_in_squares(tmp_path: Path, mirrored: bool) -> None:
    """In a square of 20 pixels nothing is scaled; "left" lies in what is cut off."""
    whole = opened(two(tmp_path), size=20)
    assert whole.fields == {"image", "boxes"}
    assert whole.labels == ("ant", "bee", "left")
    for i, label in enumerate(("ant", "bee")):
        sample = (Mirrored(whole) if mirrored else whole)[i + 2 * mirrored]
        (box,) = sample["boxes"]
        assert box.label == label
        assert edges(box, sample["image"]) == pytest.approx(white(sample["image"]), abs=1e-9)


def test_boxes_are_where_things_are_in_shapes_of_their_own(tmp_path: Path) -> None:
    whole = opened(two(tmp_path), size=20).shaped([(40, 20), (20, 40)], least=1)
    assert whole.shapes == [(40, 20), (20, 40)]
    assert [box.label for box in whole[0]["boxes"]] == ["ant", "left"]
    assert whole[0]["boxes"][1] == Box("left", 0, 0, 0.25, 1)
    for i in range(2):
        assert edges(whole[i]["boxes"][0], whole[i]["image"]) == pytest.approx(white(whole[i]["image"]), abs=1e-9)


def test_a_mirrored_crop_has_all_of_it_mirrored(tmp_path: Path) -> None:
    crops = Cropped(opened(two(tmp_path), size=16), size=16, kind="random-2d", n=3, seed=5)
    mirrors = Mirrored(crops)
    for i in range(6):
        there, here = mirrors[i + 6], mirrors[i]
        assert torch.equal(there["image"], here["image"].flip(-1))
        assert there["boxes"] == tuple(box.mirrored() for box in here["boxes"])
        assert there["uncut"] == tuple(box.mirrored() for box in here["uncut"])
        assert there["window"] == here["window"].mirrored()


# Fingerprints ---------------------------------------------------------------------------------------------
def test_the_fingerprint_changes_with_boxes_and_with_limits_on_them(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1, "b.png": 2})
    rows = [
        {"a": [], "b": []},
        {"a": [("x", [2, 0, 1, 1])], "b": []},
        {"a": [("y", [2, 0, 1, 1])], "b": []},
        {"a": [("y", [2, 0, 1, 2])], "b": []},
        {"a": [("y", [2, 0, 1, 2])], "b": [("y", [0, 0, 6, 4])]},
    ]
    found = [opened(folder(tmp_path, **some), size=4).limited(Limits(least=0, most=8)) for some in rows]
    found += [found[-1].limited(limits) for limits in (Limits(), Limits(most=7), Limits(least_area=0.5))]
    assert len({one.fingerprint for one in found}) == len(found)


def test_without_limits_it_is_that_of_the_pictures(tmp_path: Path) -> None:
    """Boxes that lie beside pictures which are learnt from with captions alone are none of such a run's business."""
    fill(tmp_path, {"a.png": 1})
    rows: list[list[tuple[str, list[float]]]] = [[], [("x", [2, 0, 1, 1])]]
    found = {opened(folder(tmp_path, a=some), size=4).fingerprint for some in rows}
    assert found == {opened(fill(tmp_path, {"metadata.jsonl": line(file_name="a.png")}), size=4).fingerprint}


def test_without_boxes_it_is_what_it_was(tmp_path: Path) -> None:
    """Runs of before go on."""
    fill(tmp_path, {"a.png": encoded(shade(1)), "a.txt": "ant", "b.png": encoded(shade(2))})
    facts = [("a.png", (tmp_path / "a.png").stat().st_size, "ant"), ("b.png", (tmp_path / "b.png").stat().st_size, "")]
    found = opened(tmp_path, size=4).fingerprint
    assert found == type(found).of(facts)


# Limits ---------------------------------------------------------------------------------------------------
AREAS = st.lists(st.integers(1, 99), max_size=6)


def layout(areas: list[int]) -> Layout:
    """Boxes of these hundredths of the picture, along its top."""
    return tuple(Box(str(i), 0, 0, area / 100, 1) for i, area in enumerate(areas))


@given(st.lists(AREAS, max_size=6), st.integers(0, 50), st.integers(0, 3), st.integers(1, 4))
def test_limits_count_what_they_take(areas: list[list[int]], least_area: int, least: int, most: int) -> None:
    limits = Limits(least_area / 100, least, max(least, most))
    layouts = [layout(some) for some in areas]
    found, counted = applied(layouts, limits)
    large = [[area for area in some if area >= least_area] for some in areas]
    assert list(found) == [i for i, some in enumerate(large) if len(some) >= least]
    for i, boxes in found.items():
        kept = sorted(large[i], reverse=True)[: limits.most]
        assert sorted((round(box.area * 100) for box in boxes), reverse=True) == kept
        assert [int(box.label) for box in boxes] == sorted(int(box.label) for box in boxes)
    assert counted.small == sum(map(len, areas)) - sum(map(len, large))
    assert counted.over == sum(max(0, len(some) - limits.most) for some in large if len(some) >= least)
    assert counted.few == sum(len(some) < least for some in large)


def test_areas_are_of_the_whole_picture_and_numbers_of_what_is_seen() -> None:
    seen = Window(0, 0, 0.5, 1)
    boxes = (Box("small", 0, 0, 0.1, 0.1), Box("half", 0.45, 0, 0.55, 1), Box("gone", 0.6, 0, 1, 1))
    found, counted = applied([boxes], Limits(least_area=0.05, least=1), [seen])
    assert found == {0: (Box("half", 0.9, 0, 1, 1),)}
    assert counted == Counted(small=1, over=0, few=0)
    assert applied([boxes], Limits(least_area=0.05, least=2), [seen]) == ({}, Counted(1, 0, 1))


def test_a_limited_folder(tmp_path: Path) -> None:
    whole = opened(two(tmp_path), size=20)
    found = whole.limited(Limits(least_area=0.09, least=1, most=1))
    assert (len(found), found.counted) == (1, Counted(small=1, over=0, few=1))  # of b.png 8 x 12 of 20 x 60
    assert (found.names, found.sides, found.shapes) == (("a.png",), (WIDE,), [(20, 20)])
    assert found.labels == ("ant", "left")
    assert found[0]["boxes"] == whole[0]["boxes"]
    wide = found.shaped([(40, 20)], least=1)
    assert [box.label for box in wide[0]["boxes"]] == ["left"]  # the larger one, where both are seen
    assert whole.counted == Counted()
    assert len(whole) == 2


def test_limits_that_leave_nothing_or_have_nothing_to_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 2 pictures has 3 boxes that are 1e-05 of it or more"):
        opened(two(tmp_path), size=20).limited(Limits(least=3))
    fill(tmp_path, {"c.png": 1})
    with pytest.raises(ValueError, match=r"nothing is said of boxes in 1 of 3 pictures, first c\.png"):
        opened(tmp_path, size=20).limited(Limits())


# Windows --------------------------------------------------------------------------------------------------
def noise(width: int, height: int) -> bytes:
    picture = pictures.to_pil(inp("noise", 3, height, width).clamp(-1, 1))
    return encoded(picture)


@pytest.mark.parametrize("sides", [(40, 30), (30, 40), (31, 17), (24, 24), (100, 7)])
@pytest.mark.parametrize("size", [24, (20, 12), 5])
def test_the_middle_is_a_window_like_others(sides: tuple[int, int], size: int | tuple[int, int]) -> None:
    data = noise(*sides)
    shape = (size, size) if isinstance(size, int) else size
    assert torch.equal(pictures.decode(data, size=size, window=middle(sides, shape)), pictures.decode(data, size=size))


@settings(deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_a_window_of_whole_pixels_is_what_is_there(sides: tuple[int, int], data: st.DataObject) -> None:
    """Bit for bit, where nothing is scaled."""
    (left, right), (top, bottom) = (
        sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)).filter(lambda e: e[0] != e[1]))) for n in sides
    )
    whole = pictures.decode(noise(*sides))
    seen = Window(left / sides[0], top / sides[1], right / sides[0], bottom / sides[1])
    found = pictures.decode(noise(*sides), size=(right - left, bottom - top), window=seen)
    assert torch.equal(found, whole[:, top:bottom, left:right])


def test_all_of_a_picture_is_a_window() -> None:
    data = noise(12, 9)
    assert torch.equal(pictures.decode(data, size=(12, 9), window=WHOLE), pictures.decode(data))


# Crops ----------------------------------------------------------------------------------------------------
U = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(1, 600), st.tuples(U, U, U))
def test_windows_are_squares_inside(sides: tuple[int, int], size: int, u: tuple[float, float, float]) -> None:
    shorter = min(sides)
    for kind, least in (("random-1d", shorter), ("random-2d", min(size, shorter))):
        found = window(sides, size=size, kind=kind, u=u)  # type: ignore[arg-type]
        left, right = (x * sides[0] for x in (found.x0, found.x1))
        top, bottom = (y * sides[1] for y in (found.y0, found.y1))
        assert right - left == pytest.approx(bottom - top, abs=1e-6)
        assert least - 1e-6 <= right - left <= shorter + 1e-6
        assert min(left, top) >= 0
        assert right <= sides[0] * (1 + 1e-12)
        assert bottom <= sides[1] * (1 + 1e-12)
        for edge in (left, top, right, bottom):
            assert edge == pytest.approx(round(edge), abs=1e-6)


def test_windows_are_anywhere() -> None:
    """The least and the largest side, and all places, are reached."""
    low, high = 1e-9, 1 - 1e-9
    assert window((10, 20), size=4, kind="random-1d", u=(low, low, low)) == Window(0, 0, 1, 0.5)
    assert window((10, 20), size=4, kind="random-1d", u=(high, high, high)) == Window(0, 0.5, 1, 1)
    assert window((10, 20), size=4, kind="random-2d", u=(low, low, low)) == Window(0, 0, 0.4, 0.2)
    assert window((10, 20), size=4, kind="random-2d", u=(low, high, high)) == Window(0.6, 0.8, 1, 1)
    assert window((10, 20), size=4, kind="random-2d", u=(high, low, low)) == Window(0, 0, 1, 0.5)
    assert window((10, 20), size=40, kind="random-2d", u=(low, low, high)) == Window(0, 0.5, 1, 1)


def test_crops_have_the_boxes_of_what_they_show(tmp_path: Path) -> None:
    crops = Cropped(opened(two(tmp_path), size=20), size=20, kind="random-1d", n=20, seed=3)
    assert len(crops) == 40
    assert crops.fields == {"image", "boxes", "uncut", "window"}
    seen: set[tuple[str, ...]] = set()
    for i in range(len(crops)):
        sample = crops[i]
        uncut, boxes, window = sample["uncut"], sample["boxes"], sample["window"]
        assert [box.within(window) for box in uncut] == list(boxes)
        labels = tuple(box.label for box in boxes)
        seen.add(labels)
        for box in boxes:
            if box.label != "left":
                assert edges(box, sample["image"]) == pytest.approx(white(sample["image"]), abs=1e-6)
        assert labels or sample["image"].max() < 0
    assert {("ant",), ("ant", "left"), ("bee",)} <= seen
    assert len({crops[i]["key"] for i in range(len(crops))}) == len(crops)


def test_a_crop_depends_on_its_address_alone(tmp_path: Path) -> None:
    whole = opened(two(tmp_path), size=16)
    crops = Cropped(whole, size=16, kind="random-2d", n=4, seed=3)
    again = Cropped(whole, size=16, kind="random-2d", n=9, seed=3)
    part = Cropped(Part(whole, [1]), size=16, kind="random-2d", n=4, seed=3)
    windows = [crops.window(i) for i in range(8)]
    assert windows == [again.window(i) for i in range(8)]
    assert windows[1::2] == [part.window(i) for i in range(4)]
    assert torch.equal(part[2]["image"], crops[5]["image"])
    assert len(set(windows)) == 8
    other = Cropped(whole, size=16, kind="random-2d", n=4, seed=4)
    assert not set(windows) & {other.window(i) for i in range(8)}


def test_crops_keep_the_largest_of_what_they_show(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": 1})
    some = [(str(i), [0, 0, 1 + i, 4]) for i in range(5)]
    whole = opened(folder(tmp_path, a=some), size=4).limited(Limits(most=2))
    sample = Cropped(whole, size=4, kind="random-1d")[0]
    assert [box.label for box in sample["boxes"]] == [box.label for box in sample["uncut"]]
    assert len(sample["boxes"]) == 2


def test_crops_are_of_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crops are cut out of a folder of pictures"):
        Cropped(Scenes(2), size=16, kind="random-1d")
    with pytest.raises(ValueError, match="0 crops of 16 pixels"):
        Cropped(opened(two(tmp_path), size=16), size=16, kind="random-1d", n=0)
    with pytest.raises(IndexError, match="there are 2 crops, and no 2"):
        Cropped(opened(tmp_path, size=16), size=16, kind="random-1d")[2]
    plain = Cropped(opened(fill(tmp_path / "x", {"a.png": 1}), size=4), size=4, kind="random-1d")
    assert plain.fields == {"image", "window"}
    assert "boxes" not in plain[0]


def test_ten_thousand_boxes_in_a_picture(tmp_path: Path) -> None:
    rows = [[i % 6, i % 4, 1, 1] for i in range(10_000)]
    text = json.dumps({"file_name": "a.png", "objects": {"bbox": rows, "label": [1] * len(rows)}})
    whole = opened(fill(tmp_path, {"a.png": 1, "metadata.jsonl": text}), size=4)
    assert len(whole.shaped([(6, 4)], least=1)[0]["boxes"]) == 10_000
    assert len(whole.limited(Limits())[0]["boxes"]) == 30
