"""The command scores files as the reference does, and refuses in one line what cannot be scored."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from cfinet_jax.errors import UserError
from cfinet_jax.metrics import __main__ as command
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.score import score

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs the command and returns its status, output and errors."""

    def call_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metrics", *arguments])
        status = command.main()
        return status, *capsys.readouterr()

    return call_it


def write(folder: pathlib.Path, name: str, content) -> str:
    """Write a file unless the content is None; return its path."""
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder / name)


@pytest.fixture
def score_them(call, tmp_path):
    """Return a function that scores a ground truth and detections, and returns status, output, errors and metrics."""

    def run(protocol: str, ground_truth, detections):
        files = write(tmp_path, "truth.json", ground_truth), write(tmp_path, "found.json", detections)
        output = tmp_path / "metrics.json"
        arguments = f"--annotations={files[0]}", f"--detections={files[1]}", f"--output={output}"
        result = call(f"--protocol={protocol}", *arguments)
        assert result[0] == 0 or (result[0] == 2 and not result[1] and len(result[2].splitlines()) == 1)
        return *result, json.loads(output.read_text()) if result[0] == 0 else None

    return run


def test_golden_files(score_them):
    files = [(GOLDEN / f"eval_a_{part}.json").read_bytes() for part in ("gt", "dets", "expected")]
    status, printed, errors, metrics = score_them("soda_d", *files[:2])
    assert (status, errors) == (0, "") and printed.startswith("soda_d: ") and "| **Small (0-1024)** |" in printed
    assert metrics["AP50"] == pytest.approx(json.loads(files[2])["stats"]["AP_50"], abs=1e-6)


def test_needs_neither_jax_nor_the_training_stack():
    blocked = ["jax", "flax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "cv2", "pycocotools"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import cfinet_jax.metrics.__main__"
    subprocess.run([sys.executable, "-c", code], check=True)


IMAGES = [{"id": n, "width": 100, "height": 80} for n in (1, 2)]
OBJECT = {"image_id": 1, "category_id": 5, "bbox": [60, 50, 20, 20]}
FOUND = OBJECT | {"score": 0.5}
CORNERS = [60, 50, 80, 70]
TRUTH = {"images": IMAGES, "categories": [{"id": 5, "name": "car"}], "annotations": [OBJECT]}
NO_CLASS = {"annotations": [], "categories": []}
MANY = [*IMAGES, *({"id": number} for number in range(3, 120_003))]


def annotated(*annotations: dict) -> dict:
    """The ground truth with other annotations."""
    return {**TRUTH, "annotations": list(annotations)}


BAD = {  # ground truth, detections and a part of the message
    "ground truth missing": (None, [FOUND], "truth.json cannot be read"),
    "detections missing": (TRUTH, None, "found.json cannot be read"),
    "ground truth not JSON": (b"{", [FOUND], "truth.json is not JSON"),
    "detections not JSON": (TRUTH, b"\xff\xd8", "found.json is not JSON"),
    "JSON of many levels": (b"[" * 100_000, [FOUND], "truth.json is not JSON"),
    "detections of many levels": (TRUTH, b'{"a":' * 100_000, "found.json is not JSON"),
    "detections instead of ground truth": ([FOUND], [FOUND], "not COCO ground truth: it has no list 'images'"),
    "no annotations": ({**TRUTH, "annotations": {}}, [], "it has no list 'annotations'"),
    "ground truth instead of detections": (TRUTH, TRUTH, "found.json is not a list of detections"),
    "list of something else": (TRUTH, [3], "entry 1 needs bbox, category_id, image_id, score"),
    "no score": (TRUTH, [FOUND, OBJECT], "found.json: entry 2 needs bbox, category_id, image_id, score"),
    "image without id": ({**TRUTH, "images": [{}]}, [], "truth.json, 'images': entry 1 needs id"),
    "annotation without box": (annotated({"image_id": 1}), [], "'annotations': entry 1 needs bbox"),
    "area of another type": (annotated(OBJECT | {"area": "wide"}), [], "area of entry 1 must be a finite"),
    "class of another type": ({**TRUTH, "categories": [{"id": 5, "name": 5}]}, [], "name of entry 1 must be a text"),
    "other split": (TRUTH, [FOUND | {"image_id": n} for n in (7, 8)], "probably of another split"),
    "unknown image": (TRUTH, [FOUND, FOUND | {"image_id": 7}], "1 of 2 detections have an id"),
    "unknown category": (TRUTH, [FOUND | {"category_id": 6}], "such as category_id 6"),
    "annotation of an unknown image": (annotated(OBJECT, OBJECT | {"image_id": 3}), [], "image_id 3"),
    "score NaN": (TRUTH, [FOUND | {"score": float("nan")}], "score of entry 1 must be a finite number, not 'nan'"),
    "score infinite": (TRUTH, [FOUND | {"score": float("inf")}], "score of entry 1 must be a finite number"),
    "box NaN": (TRUTH, [FOUND | {"bbox": [0, 0, 1, float("nan")]}], "bbox of entry 1 must be four finite numbers"),
    "a negative side": (TRUTH, [FOUND | {"bbox": [0, 0, 1, -1]}], "bbox of entry 1 must be four finite numbers"),
    "corners the wrong way round": (TRUTH, [FOUND, FOUND | {"bbox": [9, 9, -3, -3]}], "no side negative"),
    "a negative side in the ground truth": (annotated(OBJECT, OBJECT | {"bbox": [9, 9, -1e-3, 4]}), [], "entry 2 must"),
    "a box of words": (TRUTH, [FOUND | {"bbox": ["0", "0", "1", "wide"]}], "bbox of entry 1 must be four finite"),
    "box of three": (TRUTH, [FOUND | {"bbox": [0, 0, 1]}], "bbox of entry 1 must be four finite numbers"),
    "number beyond all floats": (TRUTH, [FOUND | {"score": 10**400}], "score of entry 1 must be a finite number"),
    "corners": (TRUTH, [FOUND | {"bbox": CORNERS}] * 8 + [FOUND] * 4, "found.json seems to have corners"),
    "corners in the ground truth": (annotated(*[OBJECT | {"bbox": CORNERS}] * 10), [], "truth.json seems to"),
    "shares": (TRUTH, [FOUND | {"bbox": [0.1, 0.2, 0.3, 0.4]}] * 10, "found.json seems to have shares"),
    "repeated image id": ({**TRUTH, "images": [*IMAGES, {"id": 1}]}, [], "the id 1 to more than one of 'images'"),
    "a key twice": (
        b'{"images": [], "annotations": [], "categories": [], "images": []}',
        [],
        "'images' is given twice",
    ),
    "a score twice": (
        TRUTH,
        b'[{"image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2], "score": 1, "score": 0}]',
        "twice",
    ),
    "an area below zero": (
        annotated(OBJECT | {"area": -5}),
        [],
        "area of entry 1 must be a finite number, not negative",
    ),
    "a class in two forms of Unicode": (
        {**TRUTH, "categories": [{"id": 5, "name": "caf\u00e9"}, {"id": 6, "name": "cafe\u0301"}]},
        [],
        "to more than one of 'categories'",
    ),
    "repeated class": ({**TRUTH, "categories": [{"id": n, "name": "car"} for n in (5, 6)]}, [], "the name 'car'"),
    **{
        f"image_id {value!r}": (TRUTH, [FOUND | {"image_id": value}], "image_id of entry 1 must be a whole number")
        for value in ("a", 1.5, "1.5", "1_0", True)
    },
    **{
        f"{flag} {value!r}": (annotated(OBJECT | {flag: value}), [], f"{flag} of entry 1 must be 0 or 1")
        for flag, value in (("iscrowd", "no"), ("ignore", 2), ("iscrowd", [0]))
    },
}


@pytest.mark.parametrize("row", BAD)
def test_unusable_files_are_refused_in_one_line(row, score_them):
    ground_truth, detections, fragment = BAD[row]
    status, _, errors, _ = score_them("coco", ground_truth, detections)
    assert status == 2 and fragment in errors


def test_a_repeated_id_is_found_at_once(score_them):
    started = time.perf_counter()
    _, _, errors, _ = score_them("coco", {**TRUTH, "images": [*MANY, {"id": 120_000}]}, [])
    assert "gives the id 120000" in errors and time.perf_counter() - started < 5


REGION = OBJECT | {"iscrowd": 1, "bbox": [0, 0, 20, 20]}
READ = {  # annotations (an object and a region) and the detection of the object
    "numbers": ([OBJECT, REGION], [FOUND]),
    "flags as text": ([OBJECT | {"iscrowd": "0", "ignore": "0"}, REGION | {"iscrowd": "1"}], [FOUND]),
    "flags as words": ([OBJECT | {"iscrowd": "false"}, REGION | {"iscrowd": "True"}], [FOUND]),
    "flags as floats, true and null": (
        [OBJECT | {"ignore": 0.0, "iscrowd": None}, REGION | {"iscrowd": True}],
        [FOUND],
    ),
    "ids as floats": ([OBJECT | {"image_id": 1.0}, REGION | {"category_id": 5.0}], [FOUND | {"image_id": 1.0}]),
    "ids as text": ([OBJECT | {"image_id": "1"}, REGION], [FOUND | {"category_id": "5", "image_id": " 1.0 "}]),
    "boxes as text": ([OBJECT | {"bbox": ["60", "50", "20.0", 20]}, REGION], [FOUND | {"bbox": "[60, 50, 20, 20]"}]),
    "an area of null": ([OBJECT | {"area": None}, REGION | {"area": None}], [FOUND]),
    "everything optional null": (
        [OBJECT | {"area": None, "ignore": None, "uncertain": None}, REGION | {"ignore": None}],
        [FOUND],
    ),
    "scores and areas as text": ([OBJECT | {"area": "400"}, REGION], [FOUND | {"score": "5e-1"}]),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("row", READ)
def test_numbers_written_in_other_ways_are_read(row, mark, score_them):
    annotations, detections = READ[row]
    absorbed = [entry | {"bbox": [1, 1, 9, 9], "score": 0.9} for entry in detections]
    ground_truth, found = (mark + json.dumps(each) for each in (annotated(*annotations), detections + absorbed))
    status, _, errors, metrics = score_them("coco", ground_truth.encode(), found.encode())
    assert (status, errors, metrics["AP"], metrics["boxes"]["all"]) == (0, "", pytest.approx(1), 1)


@pytest.mark.parametrize("row", ["flags as text", "flags as words"])
def test_flags_written_as_text_are_refused_from_python(row):
    with pytest.raises(UserError, match="of an annotation is a text"):
        score(annotated(*READ[row][0]), [FOUND], PROTOCOLS["coco"])


TURNED = OBJECT | {"rbox": [70, 60, 20, 10, 0.5]}
OF_TURNED = annotated(TURNED)
BAD_TURNED = {
    "upright ground truth": (TRUTH, [], "entry 1 needs bbox, category_id, image_id, rbox"),
    "upright detections": (OF_TURNED, [FOUND], "bbox of entry 1 must be five finite numbers, cx cy w h angle"),
    "a negative side": (OF_TURNED, [FOUND | {"bbox": [70, 60, -20, 10, 0.5]}], "detections have a negative side"),
    "two negative sides": (OF_TURNED, [FOUND | {"bbox": [70, 60, -20, -10, 0.5]}], "detections have a negative side"),
    "a negative side among correct boxes": (
        OF_TURNED,
        [FOUND | {"bbox": [70, 60, 20, side, 0.5]} for side in (10, -1e-6)],
        "detections have a negative side",
    ),
    "ground truth of a negative side": (
        annotated(TURNED | {"rbox": [70, 60, 20, -10, 0.5]}), [], "annotations have a negative side"
    ),
    "degrees": (OF_TURNED, [FOUND | {"bbox": [70, 60, 20, 10, 30]}], "must be five finite numbers, cx cy w h angle in"),
    "ground truth in degrees": (annotated(TURNED | {"rbox": [70, 60, 20, 10, -45]}), [], "rbox of entry 1 must be"),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD_TURNED)
def test_unusable_oriented_boxes_are_refused_in_one_line(row, score_them):
    ground_truth, detections, fragment = BAD_TURNED[row]
    status, _, errors, _ = score_them("soda_a", ground_truth, detections)
    assert status == 2 and fragment in errors


def test_wrong_arguments_are_refused_in_one_line(call, tmp_path):
    files = [f"--{key}={write(tmp_path, key, each)}" for key, each in (("annotations", TRUTH), ("detections", [FOUND]))]
    for arguments, fragment in (
        ([], "required: --protocol, --annotations, --detections; see --help"),
        (["--protocol=soda", *files], "invalid choice: 'soda'"),
        (["--protocol=coco", *files, f"--output={tmp_path / 'absent' / 'metrics.json'}"], "choose another path"),
    ):
        status, _, errors = call(*arguments)
        assert status == 2 and fragment in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("output", ["folder", ".", "folder/"])
def test_an_output_that_is_a_folder_is_refused_before_the_work(call, tmp_path, output):
    (tmp_path / "folder").mkdir()
    status, printed, errors = call(
        "--protocol=coco", "--annotations=none", "--detections=none", f"--output={tmp_path}/{output}"
    )
    assert (status, printed) == (2, "") and "is a folder: name a file" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("key", ["annotations", "detections"])
def test_an_output_that_is_also_read_is_refused(call, tmp_path, key):
    files = [f"--{name}={write(tmp_path, name, each)}" for name, each in (("annotations", TRUTH), ("detections", []))]
    before = (tmp_path / key).read_bytes()
    status, _, errors = call("--protocol=coco", *files, f"--output={tmp_path}/./{key}")
    assert status == 2 and "is also read, and would be lost" in errors and (tmp_path / key).read_bytes() == before


@pytest.mark.parametrize("size", [{"width": None}, {"height": None}, {"width": None, "height": None}])
def test_a_size_of_null_is_none(score_them, size):
    ground_truth = {**TRUTH, "images": [image | size for image in IMAGES], "annotations": [OBJECT | {"area": 9e4}] * 12}
    status, printed, errors, _ = score_them("coco", ground_truth, [FOUND])
    assert (status, errors) == (0, "") and "12 of 12 areas do not fit their boxes" in printed


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [({}, [], 0.0), ({}, [FOUND], 1.0), ({"annotations": []}, [FOUND], None), (NO_CLASS, [], None)],
    ids=["nothing found", "all found", "nothing to find", "no class"],
)
def test_unusual_but_valid_files_are_scored(protocol, change, found, expected, score_them):
    boxes = {"bbox": [60, 50, 19, 19], "rbox": [69.5, 59.5, 19, 19, 0]}
    ground_truth = annotated(OBJECT | boxes) | change
    box = boxes["rbox" if PROTOCOLS[protocol].boxes == "oriented" else "bbox"]
    status, printed, errors, metrics = score_them(protocol, ground_truth, [entry | {"bbox": box} for entry in found])
    assert (status, errors) == (0, "")
    assert metrics["AP"] == (None if expected is None else pytest.approx(expected))
    assert ("n/a" if expected is None else f"{100 * expected:.1f}") in printed.splitlines()[4]
