"""Rules for scoring detections, one entry per benchmark."""

import dataclasses
import unicodedata
from collections.abc import Mapping

import numpy as np

OVERLAPS = tuple(np.linspace(0.5, 0.95, 10).tolist())
SINGLE = (0.25, 0.5, 0.75)  # the AP at each of these IoUs is reported, if the protocol has it
ANY_AREA = (0.0, 1e10)
FLAGS = ("ignore", "iscrowd", "uncertain")  # of an annotation, 0 or 1


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules of one benchmark."""

    name: str
    headline: str  # the range of sizes of AP, AP50, AP75, the AR of each limit, and the classes
    ranges: Mapping[str, tuple[float, float]]  # area in pixels of the stored image, both ends inclusive
    limits: tuple[int, ...]  # detections per image and class, ascending
    precision_limit: int  # the limit of every AP; the AR of a size has the last limit
    # An ignored box absorbs any number of detections by their share inside it; if False, one by IoU.
    regions_are_crowds: bool
    sizes_are_crowds: bool = False  # an object outside the range absorbs as many
    region_flags: tuple[str, ...] = ("ignore", "iscrowd")  # flags of an annotation that make it an ignored box
    overlaps: tuple[float, ...] = OVERLAPS  # lowest IoU of a hit
    boxes: str = "horizontal"  # or "oriented"
    toolkit: bool = False  # the procedure of VisDrone's toolkit instead of COCO's
    best_only: bool = False  # a detection may only take the box of its highest IoU, even if another has taken it

    @property
    def marks(self) -> dict[str, int]:
        """Return the names of the APs at a single IoU, and the place of that IoU in `overlaps`."""
        return {f"AP{100 * overlap:.0f}": place for place, overlap in enumerate(self.overlaps) if overlap in SINGLE}

    @property
    def sizes(self) -> tuple[str, ...]:
        """Return the ranges that are reported in addition to the headline."""
        return tuple(name for name in self.ranges if name != self.headline)

    def __str__(self) -> str:
        low, high = self.ranges[self.headline]
        area = "any area" if high == ANY_AREA[1] else f"area {low:g}-{high:g} px"
        limits = "/".join(map(str, self.limits))
        kind = "oriented boxes" if self.boxes == "oriented" else "boxes"
        step = self.overlaps[1] - self.overlaps[0]
        return (
            f"{self.name}: AP at IoU {self.overlaps[0]:.2f}:{step:.2f}:{self.overlaps[-1]:.2f} of {kind} of {area}, "
            f"every AP (the classes' too) with {self.precision_limit} detections per "
            f"{'image, all classes together' if self.toolkit else 'image and class'}, "
            f"AR with {limits}{f', AR of a size with {self.limits[-1]}' if self.sizes else ''}; "
            f"an ignored box absorbs {'any number of detections' if self.regions_are_crowds else 'one detection'}"
            f"{', and so does an object of another size' if self.sizes_are_crowds else ''}"
            f"{'; a detection may only find the box of its highest IoU' if self.best_only else ''}"
        )


COCO_SIZES = {"S": (0.0, 32.0**2), "M": (32.0**2, 96.0**2), "L": (96.0**2, ANY_AREA[1])}
SODA_SIZES = {"eS": (0.0, 144.0), "rS": (144.0, 400.0), "gS": (400.0, 1024.0), "N": (1024.0, 2000.0)}
SIZES = (*SODA_SIZES, "larger")
LIMITS = tuple(high for _, high in SODA_SIZES.values())  # highest area of each size in square pixels

SODA_A = Protocol(
    name="soda_a",
    headline="Small",
    ranges={"Small": (0.0, 1024.0), **SODA_SIZES},
    limits=(20_000,),
    precision_limit=20_000,
    regions_are_crowds=False,
    region_flags=("ignore",),
    boxes="oriented",
)
VISDRONE = Protocol(
    name="visdrone",
    headline="all",
    ranges={"all": ANY_AREA, **COCO_SIZES},
    limits=(1, 10, 100, 500),
    precision_limit=500,
    regions_are_crowds=True,
)
PROTOCOLS = {
    "coco": Protocol(
        name="coco",
        headline="all",
        ranges={"all": ANY_AREA, **COCO_SIZES, **SODA_SIZES},
        limits=(1, 10, 100),
        precision_limit=100,
        regions_are_crowds=True,
    ),
    # The reference prints its table of classes with 1000 detections per image; here it is consistent with the AP.
    "soda_d": Protocol(
        name="soda_d",
        headline="Small",
        ranges={"Small": (0.0, 1024.0), **SODA_SIZES},
        limits=(100, 300, 1000),
        precision_limit=100,
        regions_are_crowds=False,
        region_flags=("ignore",),
    ),
    # Areas are of the rectangles. SODA-A has no ignored boxes; the difficult boxes of DOTA are ignored.
    "soda_a": SODA_A,
    # SODA-A's code as it is since July 2025; the published numbers are probably of the earlier code.
    "soda_a_2025": dataclasses.replace(SODA_A, name="soda_a_2025", best_only=True),
    # For oriented data of no benchmark: objects of every size, and regions as in COCO.
    "oriented": dataclasses.replace(
        SODA_A,
        name="oriented",
        headline="all",
        ranges={"all": ANY_AREA, **SODA_SIZES, "larger": (LIMITS[-1], ANY_AREA[1])},
        regions_are_crowds=True,
        region_flags=("ignore", "iscrowd"),
    ),
    # AI-TOD's own code (jwwangchn/cocoapi-aitod). In its paper very tiny objects start at 2 x 2 pixels and medium ones
    # end at 64 x 64; the code has no such bounds.
    "ai_tod": Protocol(
        name="ai_tod",
        headline="all",
        ranges={"all": ANY_AREA, "vt": (0.0, 64.0), "t": (64.0, 256.0), "s": (256.0, 1024.0), "m": (1024.0, 1e10)},
        limits=(100, 300, 1500),
        precision_limit=1500,
        regions_are_crowds=True,
    ),
    # TinyPerson's own code as it is now (ucas-vg/TinyBenchmark), later than the numbers of its paper. Sizes start at
    # 1 x 1 pixel, in the paper at 2 x 2.
    "tiny_person": Protocol(
        name="tiny_person",
        headline="tiny",
        ranges={
            "tiny": (1.0, 400.0),
            "tiny1": (1.0, 64.0),
            "tiny2": (64.0, 144.0),
            "tiny3": (144.0, 400.0),
            "small": (400.0, 1024.0),
            "reasonable": (1024.0, 1e10),
            "all": (1.0, 1e10),
        },
        limits=(200,),
        precision_limit=200,
        regions_are_crowds=True,
        sizes_are_crowds=True,
        region_flags=FLAGS,
        overlaps=(0.25, 0.5, 0.75),
    ),
    # VisDrone's limits and IoUs in COCO's procedure, which differs from that of its own toolkit
    # (VisDrone2018-DET-toolkit); docs/fidelity.md lists the differences.
    "visdrone": VISDRONE,
    # The toolkit's own procedure, for comparison with published numbers; it has no sizes.
    "visdrone_toolkit": dataclasses.replace(VISDRONE, name="visdrone_toolkit", ranges={"all": ANY_AREA}, toolkit=True),
}


def class_key(name: str) -> str:
    """Return the name of a class as it is compared: Unicode has several ways to write the same letters."""
    return unicodedata.normalize("NFC", name.strip())


def is_regions(category: str) -> bool:
    """Whether a category of this name stands for ignore regions of every class."""
    return category.strip().lower() in ("ignore", "ignored regions")


def sizes_of(areas: np.ndarray) -> np.ndarray:
    """Return the index into `SIZES` of each area in square pixels."""
    return np.searchsorted(LIMITS, areas, side="left")
