"""The protocols have consistent rules and the published sizes, and print them in one line."""

import pytest

from cfinet_jax.metrics.protocols import PROTOCOLS, is_regions


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_consistent(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name and protocol.headline in protocol.ranges
    assert protocol.headline not in protocol.sizes and len(protocol.sizes) == len(protocol.ranges) - 1
    assert list(protocol.limits) == sorted(protocol.limits) and protocol.precision_limit in protocol.limits
    assert {"AP50", "AP75"} <= protocol.marks.keys()  # reports show them


@pytest.mark.parametrize(
    ("category", "expected"),
    [(name, True) for name in ("ignore", "Ignore", "ignored regions", "Ignored Regions", " IGNORED REGIONS ")]
    + [(name, False) for name in ("ignored", "regions", "car", "", "ignored regions of cars")],
)
def test_ignore_regions_are_recognised_by_name(category, expected):
    assert is_regions(category) == expected


def test_overlaps_and_sizes_are_the_published_ones():
    ten = pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    for name, protocol in PROTOCOLS.items():
        assert protocol.overlaps == ((0.25, 0.5, 0.75) if name == "tiny_person" else ten)
    assert PROTOCOLS["tiny_person"].marks == {"AP25": 0, "AP50": 1, "AP75": 2}
    assert PROTOCOLS["coco"].marks == {"AP50": 0, "AP75": 5}
    coco = PROTOCOLS["coco"].ranges
    assert (coco["S"], coco["M"], coco["L"][0]) == ((0, 1024), (1024, 9216), 9216)
    assert coco["all"][0] == 0 and coco["all"][1] == coco["L"][1] >= 1e5**2
    for name in ("coco", "soda_d", "soda_a"):
        sizes = PROTOCOLS[name].ranges
        assert [sizes[size] for size in ("eS", "rS", "gS", "N")] == [(0, 144), (144, 400), (400, 1024), (1024, 2000)]


def test_protocols_print_themselves_in_one_line():
    assert "\n" not in "".join(map(str, PROTOCOLS.values()))
    assert "IoU 0.50:0.05:0.95" in str(PROTOCOLS["coco"]) and "any area" in str(PROTOCOLS["coco"])
    assert "area 0-1024 px" in str(PROTOCOLS["soda_d"]) and "100/300/1000" in str(PROTOCOLS["soda_d"])
