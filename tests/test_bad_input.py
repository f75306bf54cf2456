"""What a user can get wrong ends in status 2 and one line that says what to change; nothing is lost."""

import contextlib
import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax import optimizer, train_step, training
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import train_batches, windows_of
from cfinet_jax.metrics.results import columns
from cfinet_jax.models.detector import build_detector
from cfinet_jax.preparation import __main__ as prepare
from cfinet_jax.preparation.scenes.templates import CLASSES
from tests import tiny

SIDE = 320  # pixels of the pictures, as those of the scenes
CAFFE = "--config.detector.backbone.stride_style=caffe"

OWN = ("--config.dataset.name=mine", "--config.dataset.data_dir=TMP/prepared")

# Arguments after those of a sound run, in which TMP stands for a folder, and a part of the line.
COMMANDS = {
    "config missing": (["--config=nowhere.py"], "--config cannot be read"),
    "config missing, with changes": (["--config=nowhere.py", "--config.seed=1"], "nowhere.py"),
    "unknown variant": ([f"--config={tiny.__file__}:relased"], "no variant 'relased': choose one of released"),
    "misspelt section": (["--config.detectr.x=1"], "no key 'detectr'; Did you mean \"detector\""),
    "misspelt key": (["--config.detector.backbone.widht=3"], "no key 'widht'; Did you mean \"width\""),
    "text for a number": (["--config.detector.backbone.width=wide"], "--config.detector.backbone.width=wide"),
    "fraction for a count": (["--config.training.images=1.5"], "--config.training.images=1.5"),
    "number for a section": (["--config.detector.backbone=3"], "--config.detector.backbone=3"),
    "number for a size": (["--config.dataset.stored_size=512"], "give height and width"),
    "text for a size": (["--config.dataset.image_size=(a, b)"], "give height and width"),
    "value missing": (["--config.training.images"], "Missing value for flag --config.training.images"),
    "unknown flag": (["--workdri=x"], "Did you mean: workdir"),
    "stray argument": (["seed=3"], "'seed=3': settings are given as --config.key=value"),
    "unknown mode": (
        ["--mode=tain"],
        "should be one of <train|evaluate|export|predict|analyse|rules|compile|profile|ablate>",
    ),
    "half a cluster": (["--processes=2", "--process=0"], "Give --coordinator=HOST:PORT, --processes and --process"),
    "no cluster": (["--coordinator=host:1", "--processes=2", "--process=0"], "The processes do not meet at host:1"),
    "scenes not prepared": (["--config.dataset.data_dir=TMP"], "`python data/prepare.py scenes --data_dir=TMP`"),
    "own data not prepared": (["--config.dataset.name=mine"], "`python data/prepare.py own --name=mine --source="),
    "unknown split": (["--config.dataset.eval_split=dev"], "no split 'dev': choose one of train, val, test"),
    "no batch": (["--config.dataset.batch_size=0"], "dataset.batch_size is 0: make it at least 1"),
    "batch and devices": (["--config.dataset.batch_size=12"], "make it a multiple of 8 (8 devices x 1 micro-batches)"),
    "batch and parts": (["--config.training.micro_batches=2"], "make it a multiple of 16 (8 devices x 2"),
    "batch of evaluation": (["--config.dataset.eval_batch_size=9"], "eval_batch_size is 9: make it a multiple of 8"),
    "unknown precision": (["--config.detector.precision=half"], "choose one of float32, bfloat16"),
    "unknown depth": (["--config.detector.backbone.depth=19"], "depth is 19: choose one of 18, 34, 50, 101"),
    "unknown stride style": (["--config.detector.backbone.stride_style=tf"], "choose one of pytorch, caffe"),
    "unknown levels": (["--config.detector.neck.levels=6"], "neck.levels is 6: choose one of 4, 5"),
    "unknown network": (["--config.detector.proposal_network.name=yolo"], "choose one of coarse_to_fine, rpn"),
    "unknown assignment": (
        ["--config.detector.proposal_network.coarse_to_fine.coarse_threshold=mine"],
        "coarse_threshold is 'mine': choose one of",
    ),
    "unknown quality": (["--config.detector.imitation.quality=best"], "choose one of paper, released"),
    "unknown negatives": (["--config.detector.imitation.negatives=all"], "choose one of paper, image"),
    "unknown contrast": (["--config.detector.imitation.contrast=l2"], "choose one of eq6, means"),
    "unknown protocol": (["--config.evaluation.protocol=voc"], "choose one of ai_tod, coco, soda_d, tiny_person"),
    "unknown reaction": (["--config.training.on_nonfinite=wait"], "choose one of ('stop', 'skip')"),
    "weights missing": (["--config.training.pretrained=TMP/no.npz", CAFFE], "No pretrained weights at TMP/no.npz"),
    "weights of the other style": (["--config.training.pretrained=TMP/other.npz"], "stride_style=caffe"),
    "weights of another depth": (
        ["--config.training.pretrained=TMP/other.npz", CAFFE],
        "does not fit the model",
    ),
    "workdir in a file": (["--workdir=TMP/precious.txt/run"], "cannot be written"),
    "nothing to export": (["--mode=export", "--workdir=TMP/absent"], "No run in TMP/absent: train or evaluate first"),
    "no pictures named": (["--mode=predict", "--output=TMP/out"], "--images is missing: --mode=predict --images="),
    "no place for detections": (["--mode=predict", "--images=TMP"], "--output is missing: --mode=predict"),
    "pictures for training": (["--images=TMP"], "--images belongs to --mode=predict"),
    "no pictures there": (["--mode=predict", "--images=TMP", "--output=TMP/out"], "No pictures at TMP: give a picture"),
    "nothing to predict with": (
        ["--mode=predict", "--images=TMP/precious.txt", "--output=TMP/out"],
        "No run in TMP/run: train or evaluate first",
    ),
    "nothing to evaluate": (["--mode=evaluate", "--workdir=TMP/absent"], "No checkpoint in TMP/absent: train first"),
    "picture too large": (["--config.dataset.stored_size=(300, 320)"], "raise dataset.stored_size"),
    "windows that share all": (["--config.dataset.window_overlap=320"], "less than dataset.stored_size, which is (320"),
    "windows that share less than nothing": (["--config.dataset.window_overlap=-1"], "make it at least 0"),
    "windows of no size": (
        ["--config.dataset.window_overlap=9", "--config.dataset.stored_size=7"],
        "give height and width",
    ),
    "nothing to mix": (["--config.dataset.mixed_pictures=0"], "dataset.mixed_pictures is 0: make it at least 1"),
    "no objects": (["--config.dataset.max_objects=0"], "dataset.max_objects is 0: make it at least 1"),
    "source missing": (
        [*OWN, "--config.dataset.source=TMP/absent"],
        "--source TMP/absent is no folder: give the folder",
    ),
    "source without annotations": (
        [*OWN, "--config.dataset.source=TMP"],
        "TMP holds neither data.yaml (YOLO) nor COCO",
    ),
    "source with annotations that are not": (
        [*OWN, "--config.dataset.source=TMP", "--config.dataset.annotations=train.json"],
        "--annotations train.json must look like SPLIT=JSON or SPLIT=JSON,IMAGES",
    ),
    "source with one split twice": (
        [*OWN, "--config.dataset.source=TMP", "--config.dataset.annotations=val=a.json val=b.json"],
        "--annotations names the split 'val' twice",
    ),
    "source with annotations missing": (
        [*OWN, "--config.dataset.source=TMP", "--config.dataset.annotations=train=a.json val=b.json"],
        "annotation file TMP/a.json cannot be read",
    ),
    "source with a name that is none": (
        [*OWN, "--config.dataset.source=TMP", "--config.dataset.name=My data"],
        "'My data' cannot name a data set",
    ),
    "source and a file for the data": (
        [*OWN, "--config.dataset.source=TMP", "--config.dataset.data_dir=TMP/precious.txt"],
        "choose another --data_dir",
    ),
    "another source": (
        ["--config.dataset.source=TMP"],
        "was prepared from something else, not from TMP: delete this folder to prepare it again",
    ),
    "nothing to analyse": (["--mode=analyse", "--config.dataset.data_dir=TMP"], "is not prepared in TMP"),
    "pictures to analyse": (["--mode=analyse", "--images=TMP"], "--images belongs to --mode=predict"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def state():
    """A state of `tests.tiny`, made once."""
    config = tiny.tiny_config()
    detector = build_detector(config.detector, len(CLASSES))
    sgd = optimizer.make_optimizer(config.optimizer, config.dataset.batch_size, ())
    return train_step.create_state(jax.random.key(0), detector, sgd, tiny.SHAPE, tiny.OBJECTS)


@pytest.fixture
def quick(monkeypatch, state) -> None:
    """Runs begin with the state that has been made."""
    monkeypatch.setattr(train_step, "create_state", lambda *_, **__: jax.tree.map(jnp.copy, state))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with something to lose."""
    (tmp_path / "precious.txt").write_text("do not touch")
    np.savez(tmp_path / "other.npz", **{"conv1/kernel": np.zeros((7, 7, 3, 8)), "layer3.5/conv1/kernel": np.zeros(3)})
    return tmp_path


def check_refusal(ended: tuple[int, str, str], fragment: str) -> None:
    """Status 2 and one line that holds the fragment."""
    status, _, errors = ended
    assert status == 2, errors
    assert errors.startswith("cfinet_jax: ") and errors.endswith("\n") and len(errors.splitlines()) == 1
    assert fragment in errors and "Traceback" not in errors


@pytest.mark.parametrize("row", COMMANDS)
def test_commands(row, tiny_scenes, folder, quick):
    arguments, fragment = COMMANDS[row]
    before = snapshot(folder)
    arguments = [argument.replace("TMP", str(folder)) for argument in arguments]
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, folder / "run"), *arguments)
    check_refusal(ended, fragment.replace("TMP", str(folder)))
    assert before.items() <= snapshot(folder).items()
    assert not (folder / "absent").exists()


@pytest.mark.parametrize(
    ("mode", "missing"), [("train", "config"), ("analyse", "config"), ("train", "workdir"), ("evaluate", "workdir")]
)
def test_what_a_run_needs(mode, missing, folder):
    given = {"config": f"--config={tiny.__file__}", "workdir": f"--workdir={folder}"}
    del given[missing]
    check_refusal(tiny.call_main(f"--mode={mode}", *given.values()), f"--{missing} is missing: python -m cfinet_jax")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("--config.detector.roi_head.hidden=48", "belongs to another run (detector.roi_head.hidden was 32, is 48)"),
        ("--config.detector.neck.levels=5", "belongs to another run (detector.neck.levels was 4, is 5)"),
    ],
)
def test_a_workdir_of_another_model(trained, tiny_scenes, quick, change, fragment):
    workdir, _ = trained
    before = snapshot(workdir)
    check_refusal(tiny.call_main(*tiny.arguments(tiny_scenes, workdir), change), fragment)
    assert snapshot(workdir) == before


def test_evaluation_of_another_model(trained, tiny_scenes, monkeypatch, state):
    wider = dataclasses.replace(state, params=jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), state.params))
    monkeypatch.setattr(train_step, "create_state", lambda *_, **__: wider)
    before = snapshot(trained[0])
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, trained[0]), "--mode=evaluate")
    check_refusal(ended, "another model")
    assert snapshot(trained[0]) == before


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("backbone", {"widht": 3}, "detector.backbone has no key 'widht': choose from depth, frozen_stages, "),
        ("imitation", {"tau": 0.6}, "detector.imitation has no key 'tau': choose from contrast, "),
    ],
)
def test_a_misspelt_key_in_a_config_file(monkeypatch, tiny_scenes, folder, section, change, message):
    config = tiny.tiny_config()
    with config.unlocked():
        config.detector[section].update(change)
    (folder / "own.py").write_text("from tests import tiny\nget_config = tiny.own")
    monkeypatch.setattr(tiny, "own", lambda: config, raising=False)
    _, *others = tiny.arguments(tiny_scenes, folder)
    check_refusal(tiny.call_main(f"--config={folder}/own.py", *others), message)


class NotFinite:
    """A compiled step whose loss is NaN."""

    def lower(self, *_):
        return self

    def compile(self):
        @jax.jit
        def step(state, batch, key):
            metrics = {"finite": jnp.array(False), "loss": jnp.nan, "objects_dropped": 0.0}
            return dataclasses.replace(state, step=state.step + 1), metrics

        return step


@pytest.mark.parametrize("reaction", ["stop", "skip"])
def test_a_loss_that_is_not_finite(monkeypatch, tiny_scenes, folder, quick, reaction):
    monkeypatch.setattr(training, "make_step", lambda *_: NotFinite())
    monkeypatch.setattr("cfinet_jax.evaluate.detect_split", lambda *_: (columns([]), None))
    arguments = (*tiny.arguments(tiny_scenes, folder), f"--config.training.on_nonfinite={reaction}")
    status, output, errors = ended = tiny.call_main(*arguments)
    settings = tiny.tiny_config().dataset
    settings.data_dir = str(tiny_scenes)
    split = dataset.open_dataset(settings, "train")
    first = next(train_batches(split, windows_of(split, settings, training=True), settings, 0, 8))
    line = f"The loss of step 1 is not finite (image ids {', '.join(map(str, first.image_ids))})"
    if reaction == "stop":
        check_refusal(ended, f"{line}: lower optimizer.learning_rate, set optimizer.clip_norm")
    else:
        assert (status, errors) == (0, "")
        assert f"{line}: skipped." in output and "The loss of step 2 is not finite" in output
        assert json.loads((folder / "metrics.json").read_text())["AP"] == 0


def coco(images: list, annotations: list, categories: tuple = CLASSES) -> dict:
    """A COCO file of pictures named `N.png`."""
    named = [{"id": n, "name": name} for n, name in enumerate(categories, 1)]
    described = [{"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in images]
    return {"images": described, "annotations": annotations, "categories": named}


def call_prepare(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of `data/prepare.py`."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["prepare.py", *arguments]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        status = prepare.main()
    return status, output.getvalue(), errors.getvalue()


@pytest.fixture
def pictures(folder, rng) -> Path:
    """The folder with eight sound pictures, 1.png to 8.png."""
    for number in range(1, 9):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    return folder


def prepare_coco(
    folder: Path, content: dict | bytes, splits: tuple[str, ...] = ("train", "test")
) -> tuple[int, str, str]:
    """Prepares an annotation file as several splits."""
    (folder / "own.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    annotations = [f"--annotations={split}=own.json" for split in splits]
    return call_prepare("coco", f"--source={folder}", f"--data_dir={folder}/prepared", *annotations)


FILES = {
    "not JSON": (b"{", "is not JSON"),
    "not text": (b"\xff\xd8", "is not JSON"),
    "not COCO": (b"[]", "is not COCO: it has no list 'images'"),
    "COCO in part": ({"images": [], "categories": []}, "is not COCO: it has no list 'annotations'"),
    "image without size": ({**coco([], []), "images": [{"id": 1, "file_name": "a"}]}, "every one of 'images' needs"),
    "file name of another type": (
        {**coco([], []), "images": [{"id": 1, "file_name": 5, "height": 1, "width": 1}]},
        "'file_name' is 5 in 'images'",
    ),
    "class name of another type": ({**coco([], []), "categories": [{"id": 1, "name": None}]}, "'name' is None"),
    "repeated image id": (coco([1, 1], []), "gives the id 1 to several of 'images'"),
    "huge image id": (coco([2**40], []), "must be whole numbers below 2^31"),
    "no class": (coco([1], [], ()), "names no class"),
    "no picture": (coco([77, 78], []), "no image of"),
    "no object": (coco([1, 2], []), "has no object to learn from"),
}


@pytest.mark.parametrize("row", FILES)
def test_annotation_files(row, pictures):
    content, fragment = FILES[row]
    before = snapshot(pictures)
    status, _, errors = prepare_coco(pictures, content)
    assert status == 2 and len(errors.splitlines()) == 1 and fragment in errors
    assert before.items() <= snapshot(pictures).items()
    assert not list(pictures.glob("prepared/coco/*"))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["coco"], "required: --data_dir; see --help"),
        (["cocoa", "--data_dir=TMP"], "invalid choice: 'cocoa'"),
        (["coco", "--data_dir=TMP"], "coco needs --source=FOLDER"),
        (["own", "--data_dir=TMP"], "own needs --source=FOLDER"),
        (["yolo", "--data_dir=TMP"], "yolo needs --source=FOLDER, the folder of data.yaml"),
        (["yolo", "--data_dir=TMP", "--source=TMP", "--annotations=train=a"], "and no --annotations"),
        (["yolo", "--data_dir=TMP/prepared", "--source=TMP"], "TMP/data.yaml cannot be read"),
        (["own", "--data_dir=TMP/prepared", "--source=TMP"], "holds neither data.yaml (YOLO) nor COCO files"),
        (["visdrone", "--data_dir=TMP"], "visdrone needs --source=FOLDER, the folder of the data set"),
        (["ai_tod", "--data_dir=TMP", "--source=TMP", "--annotations=train=a"], "and no --annotations"),
        (["visdrone", "--data_dir=TMP/prepared", "--source=TMP"], "TMP holds none of VisDrone2019-DET-train"),
        (["ai_tod", "--data_dir=TMP/prepared", "--source=TMP"], "TMP holds no annotations (annotations/aitod_SPLIT"),
        (["tiny_person", "--data_dir=TMP/prepared", "--source=TMP"], "(annotations/tiny_set_SPLIT.json, "),
        (["hit_uav", "--data_dir=TMP/prepared", "--source=TMP/absent"], "is no folder: give the folder"),
        (["coco", "--data_dir=TMP/prepared", "--source=TMP/absent"], "is no folder"),
        (["coco", "--data_dir=TMP", "--source=TMP", "--annotations=own.json"], "must look like SPLIT=JSON"),
        (["coco", "--data_dir=TMP", "--source=TMP", "--annotations=train=no.json"], "cannot be read"),
        (["coco", "--data_dir=TMP", "--source=TMP", "--annotations=a=b", "--annotations=a=c"], "'a' twice"),
        (["coco", "--data_dir=TMP", "--source=TMP", "--annotations=a=b", "--name=My data"], "cannot name a data set"),
        (["scenes", "--data_dir=TMP", "--source=TMP"], "leave out --source"),
        (["scenes", "--data_dir=TMP/precious.txt"], "choose another --data_dir"),
        (["sodad", "--data_dir=TMP"], "sodad needs --source=FOLDER, the folder of Images and Annotations"),
        (["sodad", "--data_dir=TMP", "--source=TMP", "--annotations=train=a"], "and no --annotations"),
        (["sodad", "--data_dir=TMP/prepared", "--source=TMP", "--windows"], "TMP holds no Annotations/SPLIT.json"),
        (["sodad", "--data_dir=TMP/prepared", "--source=TMP/absent"], "TMP/absent holds no Annotations/SPLIT.json"),
        (["coco", "--data_dir=TMP", "--source=TMP", "--windows"], "--windows belongs to sodad: leave it out"),
    ],
)
def test_preparation_commands(arguments, fragment, folder):
    before = snapshot(folder)
    status, _, errors = call_prepare(*(argument.replace("TMP", str(folder)) for argument in arguments))
    assert status == 2 and len(errors.splitlines()) == 1 and fragment.replace("TMP", str(folder)) in errors
    assert snapshot(folder) == before


def test_data_on_a_store_whose_package_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("coco", "yolo", "own", "visdrone", "hit_uav"):
        status, _, errors = call_prepare(name, f"--data_dir={folder}", "--source=gs://bucket/data")
        assert status == 2 and len(errors.splitlines()) == 1
        assert errors.startswith("gs://bucket/data cannot be read") and errors.endswith("pip install gcsfs\n")


@pytest.mark.parametrize("flag", ["workdir", "config.dataset.data_dir", "config.training.pretrained"])
def test_paths_on_a_store_whose_package_is_missing(folder, tiny_scenes, monkeypatch, flag):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    status, _, errors = tiny.call_main(*tiny.arguments(tiny_scenes, folder / "run"), f"--{flag}=gs://bucket/there")
    assert status == 2 and len(errors.splitlines()) == 1
    assert "gs://" in errors and errors.endswith("pip install gcsfs\n")


BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
PROBLEMS = [  # an annotation and what is said of it
    (BOX | {"bbox": [400, 10, 20, 20]}, "box outside the image, skipped"),
    (BOX | {"bbox": [310, 10, 20, 20]}, "box partly outside the image, clipped"),
    (BOX | {"bbox": [10, 10, 0, 20]}, "box without width or height, skipped"),
    (BOX | {"bbox": [10, 10, 20, -20]}, "box without width or height, skipped"),
    (BOX | {"bbox": [float("nan"), 10, 20, 20]}, "box is not four finite numbers, skipped"),
    (BOX | {"bbox": [10**400, 10, 20, 20]}, "box is not four finite numbers, skipped"),
    (BOX | {"bbox": None}, "box is not four finite numbers, skipped"),
    (BOX | {"category_id": 99}, "annotation of an unknown category, skipped"),
    (BOX | {"category_id": [1]}, "annotation of an unknown category, skipped"),
    (BOX | {"image_id": 99}, "annotation of an unknown image, skipped"),
    (BOX | {"image_id": {}}, "annotation of an unknown image, skipped"),
]


def test_broken_records_are_counted_named_and_skipped(pictures):
    cut = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(cut[: len(cut) // 2])
    cv2.imwrite(str(pictures / "4.png"), np.zeros((SIDE, 200, 3), np.uint8))
    annotations = [entry | {"id": number} for number, (entry, _) in enumerate(PROBLEMS)]
    annotations += [BOX | {"id": 50}, BOX | {"id": 50, "bbox": [60, 60, 9, 9]}]
    status, output, errors = prepare_coco(pictures, coco([1, 2, 3, 4, 55], annotations))
    assert (status, errors) == (0, "")
    account = json.loads(next((pictures / "prepared").glob("coco/*/account.json")).read_text())["train"]
    expected = {problem for _, problem in PROBLEMS} | {
        "image broken or cut short, skipped",
        "image of another size than stated, skipped",
        "image missing, skipped",
        "annotation id repeated, kept",
    }
    assert account["problems"].keys() == expected
    for problem in expected:
        assert problem in output
    assert account["problems"]["image missing, skipped"] == ["55.png"]
    assert (account["images"], account["images_kept"]) == (5, 2)
    assert (account["annotations"], account["annotations_kept"]) == (len(PROBLEMS) + 2, 3)


def test_a_data_set_is_not_prepared_over_another(pictures):
    assert prepare_coco(pictures, coco([1, 2], [BOX]))[0] == 0
    before = snapshot(pictures / "prepared")
    status, output, _ = prepare_coco(pictures, coco([3, 4, 5], []))
    assert status == 0 and "is already prepared" in output and "delete this folder" in output
    assert snapshot(pictures / "prepared") == before


@pytest.mark.parametrize(
    ("break_picture", "fragment"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: path.write_bytes(path.read_bytes()[:999]), "cannot be decoded"),
        (lambda path: cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8)), "but was 320 x 320 when prepared"),
    ],
    ids=["missing", "empty", "truncated", "resized"],
)
def test_pictures_that_changed_after_preparation(pictures, quick, break_picture, fragment):
    assert prepare_coco(pictures, coco(range(1, 9), [BOX]))[0] == 0
    break_picture(pictures / "5.png")
    arguments = (*tiny.arguments(pictures / "prepared", pictures / "run"), "--config.dataset.name=coco")
    ended = tiny.call_main(*arguments)
    check_refusal(ended, fragment)
    assert "5.png" in ended[2]


def test_a_prepared_data_set_that_lost_a_file(tiny_scenes, folder):
    shutil.copytree(tiny_scenes, folder / "prepared")
    for file in (folder / "prepared").glob("scenes/*/*train*"):
        file.unlink()
    ended = tiny.call_main(*tiny.arguments(folder / "prepared", folder / "run"))
    check_refusal(ended, "scenes-train.array_record-00000-of-00001 is missing: delete")


def test_pictures_without_objects(pictures):
    assert prepare_coco(pictures, coco(range(1, 9), []), ("val", "test"))[0] == 0
    arguments = (*tiny.arguments(pictures / "prepared", pictures / "run"), "--config.dataset.name=coco")
    status, output, errors = tiny.call_main(*arguments, "--config.dataset.train_split=val")
    assert (status, errors) == (0, "")
    assert "After 16 images: AP n/a" in output
    records = [json.loads(line) for line in (pictures / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["train", "train", "eval"]
    assert all(np.isfinite(record["loss"]) and record["loss/roi/box"] == 0 for record in records[:2])
    assert json.loads((pictures / "run" / "metrics.json").read_text())["AP"] is None
