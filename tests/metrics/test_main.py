"""The command that scores files: the reference's numbers, and one line for what cannot be scored."""

import copy
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
NAMES = {"AP_50": "AP50", "AP_75": "AP75", "AP_Normal": "AP_N", "AR_Normal@1000": "AR_N"}
NAMES |= {f"AR@{limit}": f"AR{limit}" for limit in (100, 300, 1000)}
NAMES |= {f"AR_{size}@1000": f"AR_{size}" for size in ("eS", "rS", "gS")}


@pytest.fixture
def call(monkeypatch, capsys):
    """The command with some arguments; status, output and errors."""

    def call_it(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metrics", *arguments])
        status = command.main()
        return status, *capsys.readouterr()

    return call_it


@pytest.mark.parametrize("case", "abcd")
def test_golden_files(case, call, tmp_path):
    ground_truth, detections, expected = (GOLDEN / f"eval_{case}_{part}.json" for part in ("gt", "dets", "expected"))
    output = tmp_path / "metrics.json"
    files = f"--annotations={ground_truth}", f"--detections={detections}", f"--output={output}"
    status, printed, errors = call("--protocol=soda_d", *files)
    assert (status, errors) == (0, "") and printed.startswith("soda_d: ") and "| **Small (0-1024)** |" in printed
    metrics, expected = json.loads(output.read_text()), json.loads(expected.read_text())
    assert len(expected["stats"]) == 14
    for name, value in expected["stats"].items():
        assert metrics[NAMES.get(name, name)] == pytest.approx(value, abs=1e-6), name
    assert list(metrics["per_class"]) == list(expected["per_class_AP"])


def test_needs_neither_jax_nor_the_training_stack():
    blocked = ["jax", "flax", "orbax", "grain", "tensorflow_datasets", "matplotlib", "cv2", "pycocotools"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import cfinet_jax.metrics.__main__"
    subprocess.run([sys.executable, "-c", code], check=True)


IMAGES = [{"id": n, "width": 100, "height": 80} for n in (1, 2)]
OBJECT = {"image_id": 1, "category_id": 5, "bbox": [60, 50, 20, 20]}
FOUND = OBJECT | {"score": 0.5}
CORNERS = [60, 50, 80, 70]
TRUTH = {"images": IMAGES, "categories": [{"id": 5, "name": "car"}], "annotations": [OBJECT]}
MANY = [*IMAGES, *({"id": number} for number in range(3, 120_003))]
BAD = {  # ground truth, detections and what is said of them
    "ground truth missing": (None, [FOUND], "truth.json cannot be read: No such file"),
    "detections missing": (TRUTH, None, "found.json cannot be read: No such file"),
    "ground truth not JSON": (b"{", [FOUND], "truth.json is not JSON"),
    "detections not JSON": (TRUTH, b"\xff\xd8", "found.json is not JSON"),
    "detections in the place of ground truth": ([FOUND], [FOUND], "is not COCO ground truth: it has no list 'images'"),
    "no annotations": ({**TRUTH, "annotations": {}}, [], "is not COCO ground truth: it has no list 'annotations'"),
    "ground truth in the place of detections": (TRUTH, TRUTH, "found.json is not a list of detections"),
    "list of something else": (TRUTH, [3], "entry 1 needs bbox, category_id, image_id, score"),
    "no score": (TRUTH, [FOUND, OBJECT], "found.json: entry 2 needs bbox, category_id, image_id, score"),
    "image without id": ({**TRUTH, "images": [{}]}, [], "truth.json, 'images': entry 1 needs id"),
    "annotation without box": ({**TRUTH, "annotations": [{"image_id": 1}]}, [], "'annotations': entry 1 needs bbox"),
    "area of another type": (
        {**TRUTH, "annotations": [OBJECT | {"area": "wide"}]},
        [],
        "area of entry 1 must be a finite",
    ),
    "class of another type": ({**TRUTH, "categories": [{"id": 5, "name": 5}]}, [], "name of entry 1 must be a text"),
    "image named, not numbered": (TRUTH, [FOUND | {"image_id": "a"}], "image_id of entry 1 must be a whole number"),
    "other split": (TRUTH, [FOUND | {"image_id": n} for n in (7, 8)], "probably of another split"),
    "unknown image": (TRUTH, [FOUND, FOUND | {"image_id": 7}], "1 of 2 detections have an id that the ground truth"),
    "unknown category": (TRUTH, [FOUND | {"category_id": 6}], "such as category_id 6: match the ids"),
    "annotation of an unknown image": ({**TRUTH, "annotations": [OBJECT, OBJECT | {"image_id": 3}]}, [], "image_id 3"),
    "score NaN": (TRUTH, [FOUND | {"score": float("nan")}], "score of entry 1 must be a finite number, not 'nan'"),
    "score infinite": (TRUTH, [FOUND | {"score": float("inf")}], "score of entry 1 must be a finite number"),
    "box NaN": (TRUTH, [FOUND | {"bbox": [0, 0, 1, float("nan")]}], "bbox of entry 1 must be four finite numbers"),
    "a negative side": (TRUTH, [FOUND | {"bbox": [0, 0, 1, -1]}], "bbox of entry 1 must be four finite numbers"),
    "corners the wrong way round": (TRUTH, [FOUND, FOUND | {"bbox": [9, 9, -3, -3]}], "no side negative"),
    "a negative side in the ground truth": (
        {**TRUTH, "annotations": [OBJECT, OBJECT | {"bbox": [9, 9, -1e-3, 4]}]},
        [],
        "bbox of entry 2 must be",
    ),
    "a box of words": (TRUTH, [FOUND | {"bbox": ["0", "0", "1", "wide"]}], "bbox of entry 1 must be four finite"),
    "box of three": (TRUTH, [FOUND | {"bbox": [0, 0, 1]}], "bbox of entry 1 must be four finite numbers"),
    "number beyond all floats": (TRUTH, [FOUND | {"score": 10**400}], "score of entry 1 must be a finite number"),
    "corners": (TRUTH, [FOUND | {"bbox": CORNERS}] * 8 + [FOUND] * 4, "found.json seems to have corners (x1 y1 x2 y2)"),
    "corners in the ground truth": (
        {**TRUTH, "annotations": [OBJECT | {"bbox": CORNERS}] * 10},
        [],
        "truth.json seems to",
    ),
    "repeated image id": ({**TRUTH, "images": [*IMAGES, {"id": 1}]}, [], "gives the id 1 to several of 'images'"),
    "JSON of many levels": (b"[" * 100_000, [FOUND], "truth.json is not JSON: "),
    "detections of many levels": (TRUTH, b'{"a":' * 100_000, "found.json is not JSON: "),
    "an id that is no whole number": (TRUTH, [FOUND | {"image_id": 1.5}], "image_id of entry 1 must be a whole number"),
    "an id of a text that is not": (TRUTH, [FOUND | {"image_id": "1.5"}], "whole number, not '1.5'"),
    "an id of digits with a mark": (TRUTH, [FOUND | {"image_id": "1_0"}], "whole number, not '1_0'"),
    "an id that is true": (TRUTH, [FOUND | {"image_id": True}], "whole number, not 'True'"),
    "a flag of words": (
        {**TRUTH, "annotations": [OBJECT | {"iscrowd": "no"}]},
        [],
        "iscrowd of entry 1 must be 0 or 1",
    ),
    "a flag that counts": ({**TRUTH, "annotations": [OBJECT | {"ignore": 2}]}, [], "ignore of entry 1 must be 0 or 1"),
    "a flag that is a list": ({**TRUTH, "annotations": [OBJECT | {"iscrowd": [0]}]}, [], "iscrowd of entry 1 must be"),
    "shares": (TRUTH, [FOUND | {"bbox": [0.1, 0.2, 0.3, 0.4]}] * 10, "found.json seems to have shares"),
    "repeated class": ({**TRUTH, "categories": [{"id": n, "name": "car"} for n in (5, 6)]}, [], "gives the name 'car'"),
}


def write(folder: pathlib.Path, name: str, content) -> str:
    """The path of a file with this content, or of none."""
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder / name)


@pytest.mark.parametrize("row", BAD)
def test_what_cannot_be_scored(row, call, tmp_path):
    ground_truth, detections, fragment = BAD[row]
    files = write(tmp_path, "truth.json", ground_truth), write(tmp_path, "found.json", detections)
    status, printed, errors = call("--protocol=coco", f"--annotations={files[0]}", f"--detections={files[1]}")
    assert (status, printed) == (2, "") and fragment in errors and len(errors.splitlines()) == 1


def test_a_repeated_id_is_found_at_once(call, tmp_path):
    files = (
        write(tmp_path, "truth.json", {**TRUTH, "images": [*MANY, {"id": 120_000}]}),
        write(tmp_path, "found.json", []),
    )
    started = time.perf_counter()
    status, _, errors = call("--protocol=coco", f"--annotations={files[0]}", f"--detections={files[1]}")
    assert status == 2 and "gives the id 120000 to several of 'images'" in errors
    assert time.perf_counter() - started < 5


REGION = OBJECT | {"iscrowd": 1, "bbox": [0, 0, 20, 20]}
READ = {  # ground truth and detections that stand for those of `TRUTH`, a region and one true detection
    "as they should": ([OBJECT, REGION], [FOUND]),
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
def test_numbers_that_stand_as_something_else_are_read(row, mark, call, tmp_path):
    annotations, detections = READ[row]
    ground_truth = json.dumps({**TRUTH, "annotations": annotations})
    absorbed = [entry | {"bbox": [1, 1, 9, 9], "score": 0.9} for entry in detections]
    files = (
        write(tmp_path, "truth.json", (mark + ground_truth).encode()),
        write(tmp_path, "found.json", (mark + json.dumps(detections + absorbed)).encode()),
    )
    output = tmp_path / "metrics.json"
    arguments = f"--annotations={files[0]}", f"--detections={files[1]}", f"--output={output}"
    status, _, errors = call("--protocol=coco", *arguments)
    metrics = json.loads(output.read_text())
    assert (status, errors, metrics["AP"], metrics["boxes"]["all"]) == (0, "", pytest.approx(1), 1)


@pytest.mark.parametrize("row", ["flags as text", "flags as words"])
def test_flags_of_text_are_refused_where_no_file_is_read(row):
    with pytest.raises(UserError, match="of an annotation is a text"):
        score({**TRUTH, "annotations": READ[row][0]}, [FOUND], PROTOCOLS["coco"])


TURNED = OBJECT | {"rbox": [70, 60, 20, 10, 0.5]}
OF_TURNED = {**TRUTH, "annotations": [TURNED]}
BAD_TURNED = {
    "upright ground truth": (TRUTH, [], "'annotations': entry 1 needs bbox, category_id, image_id, rbox"),
    "upright detections": (OF_TURNED, [FOUND], "bbox of entry 1 must be five finite numbers, cx cy w h angle"),
    "a negative side": (OF_TURNED, [FOUND | {"bbox": [70, 60, -20, 10, 0.5]}], "detections have a negative side"),
    "two negative sides": (OF_TURNED, [FOUND | {"bbox": [70, 60, -20, -10, 0.5]}], "detections have a negative side"),
    "negative sides among sound boxes": (
        OF_TURNED,
        [FOUND | {"bbox": [70, 60, 20, side, 0.5]} for side in (10, -1e-6)],
        "detections have a negative side",
    ),
    "ground truth of a negative side": (
        {**TRUTH, "annotations": [TURNED | {"rbox": [70, 60, 20, -10, 0.5]}]},
        [],
        "annotations have a negative side",
    ),
    "degrees": (OF_TURNED, [FOUND | {"bbox": [70, 60, 20, 10, 30]}], "must be five finite numbers, cx cy w h angle in"),
    "ground truth in degrees": (
        {**TRUTH, "annotations": [TURNED | {"rbox": [70, 60, 20, 10, -45]}]},
        [],
        "rbox of entry 1 must be five finite numbers",
    ),
}


@pytest.mark.parametrize("row", BAD_TURNED)
def test_oriented_boxes_that_cannot_be_scored(row, call, tmp_path):
    ground_truth, detections, fragment = BAD_TURNED[row]
    files = write(tmp_path, "truth.json", ground_truth), write(tmp_path, "found.json", detections)
    status, printed, errors = call("--protocol=soda_a", f"--annotations={files[0]}", f"--detections={files[1]}")
    assert (status, printed) == (2, "") and fragment in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "required: --protocol, --annotations, --detections; see --help"),
        (["--protocol=soda", "--annotations=a", "--detections=b"], "invalid choice: 'soda'"),
    ],
)
def test_arguments(arguments, fragment, call):
    status, _, errors = call(*arguments)
    assert status == 2 and fragment in errors and len(errors.splitlines()) == 1


def test_an_output_that_cannot_be_written(call, tmp_path):
    files = write(tmp_path, "truth.json", TRUTH), write(tmp_path, "found.json", [FOUND])
    output = f"--output={tmp_path / 'absent' / 'metrics.json'}"
    status, _, errors = call("--protocol=coco", f"--annotations={files[0]}", f"--detections={files[1]}", output)
    assert status == 2 and "choose another path" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("output", ["folder", ".", "folder/"])
def test_an_output_that_is_a_folder_is_refused_before_the_work(call, tmp_path, output):
    (tmp_path / "folder").mkdir()
    status, printed, errors = call(
        "--protocol=coco", "--annotations=none", "--detections=none", f"--output={tmp_path}/{output}"
    )
    assert (status, printed) == (2, "") and "is a folder: name a file" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("size", [{"width": None}, {"height": None}, {"width": None, "height": None}])
def test_a_size_of_null_is_none(call, tmp_path, size):
    ground_truth = {**TRUTH, "images": [image | size for image in IMAGES], "annotations": [OBJECT | {"area": 9e4}] * 12}
    files = write(tmp_path, "truth.json", ground_truth), write(tmp_path, "found.json", [FOUND])
    status, printed, errors = call("--protocol=coco", f"--annotations={files[0]}", f"--detections={files[1]}")
    assert (status, errors) == (0, "") and "12 of 12 areas do not fit their boxes" in printed


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("change", "detections", "expected"),
    [({}, [], 0.0), ({}, [FOUND], 1.0), ({"annotations": []}, [FOUND], None), ({"categories": []}, [], None)],
    ids=["nothing found", "all found", "nothing to find", "no class"],
)
def test_what_is_unusual_but_sound(protocol, change, detections, expected, call, tmp_path):
    ground_truth = copy.deepcopy(TRUTH) | change
    if not ground_truth["categories"]:
        ground_truth["annotations"] = []
    upright, oriented = [60, 50, 19, 19], [69.5, 59.5, 19, 19, 0]
    box = oriented if PROTOCOLS[protocol].boxes == "oriented" else upright
    boxes = {"bbox": upright, "rbox": oriented}
    ground_truth["annotations"] = [entry | boxes for entry in ground_truth["annotations"]]
    detections = [entry | {"bbox": box} for entry in detections]
    files = write(tmp_path, "truth.json", ground_truth), write(tmp_path, "found.json", detections)
    output = tmp_path / "metrics.json"
    arguments = f"--annotations={files[0]}", f"--detections={files[1]}", f"--output={output}"
    status, printed, errors = call(f"--protocol={protocol}", *arguments)
    assert (status, errors) == (0, "")
    assert json.loads(output.read_text())["AP"] == (None if expected is None else pytest.approx(expected))
    assert ("n/a" if expected is None else f"{100 * expected:.1f}") in printed.splitlines()[4]
