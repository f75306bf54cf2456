"""Every mistake of a user ends in status 2 and one line that says what to change; no file is lost."""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

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
from cfinet_jax.preparation.scenes.templates import CLASSES
from tests import prepared, tiny

SIDE = 320  # pixels of the pictures, as of the scenes
CAFFE = "--config.detector.backbone.stride_style=caffe"
OWN = "--config.dataset.name=mine --config.dataset.data_dir=TMP/prepared --config.dataset.source=TMP"
PREDICT = "--mode=predict --output=TMP/out"

# Arguments added to those of a valid run, where TMP stands for a folder: words of the line, separated by |.
COMMANDS = {
    "--config=nowhere.py": "--config|nowhere.py",
    "--config=nowhere.py --config.seed=1": "nowhere.py",
    f"--config={tiny.__file__}:relased": "'relased'|choose one of released",
    "--config=TMP/exit.py": "--config cannot be run (SystemExit: 3)",
    "--config=TMP/dict.py": "--config has no key dataset",
    "--config.detectr.x=1": "'detectr'|\"detector\"",
    "--config.detector.backbone.widht=3": "'widht'|\"width\"",
    "--config.detector.backbone.width=wide": "--config.detector.backbone.width=wide",
    "--config.training.images=1.5": "--config.training.images=1.5",
    "--config.detector.backbone=3": "--config.detector.backbone=3",
    "--config.dataset.stored_size=512": "height and width",
    '--config.dataset.image_size="(a,b)"': "dataset.image_size.0 is|make it a number",
    "--config.training.images": "Missing value|--config.training.images",
    "--workdri=x": "workdir",
    "seed=3": "'seed=3'|--config.key=value",
    "--mode=tain": "train|evaluate|export|predict|analyse|rules|compile|profile|ablate",
    "--processes=2 --process=0": "--coordinator|--processes|--process",
    "--coordinator=host:1 --processes=2 --process=0": "host:1",
    "--config.dataset.data_dir=TMP/precious.txt": "TMP/precious.txt/scenes.unfinished",
    "--config.dataset.name=mine": "'mine' is not prepared|--config.dataset.source=FOLDER",
    "--config.dataset.eval_split=dev": "'dev'|choose one of train, val, test",
    "--config.dataset.batch_size=0": "dataset.batch_size is 0",
    "--config.dataset.batch_size=12": "multiple of 8|8 devices",
    "--config.training.micro_batches=2": "multiple of 16",
    "--config.dataset.eval_batch_size=9": "eval_batch_size|multiple of 8",
    "--config.detector.precision=half": "choose one of float32, bfloat16",
    "--config.detector.backbone.depth=19": "depth|choose one of 18, 34, 50, 101",
    "--config.detector.backbone.stride_style=tf": "choose one of pytorch, caffe",
    "--config.detector.neck.levels=6": "neck.levels|choose one of 4, 5",
    "--config.detector.proposal_network.name=yolo": "choose one of coarse_to_fine, rpn",
    "--config.detector.proposal_network.coarse_to_fine.coarse_threshold=mine": "'mine'|choose one of",
    "--config.detector.imitation.quality=best": "choose one of paper, released",
    "--config.detector.imitation.negatives=all": "choose one of paper, image",
    "--config.detector.imitation.contrast=l3": "choose one of eq6, means, l2",
    "--config.evaluation.protocol=voc": "choose one of ai_tod, coco, soda_d, tiny_person",
    "--config.training.on_nonfinite=wait": "'wait'|'stop', 'skip'",
    f"--config.training.pretrained=TMP/no.npz {CAFFE}": "TMP/no.npz",
    "--config.training.pretrained=TMP/other.npz": "stride_style=caffe",
    f"--config.training.pretrained=TMP/other.npz {CAFFE}": "does not fit the model",
    "--workdir=TMP/precious.txt/run": "cannot be written|choose another --workdir",
    "--mode=export --workdir=TMP/absent": "No run in TMP/absent",
    "--mode=evaluate --workdir=TMP/absent": "No checkpoint in TMP/absent|train first",
    PREDICT: "--images is missing|--mode=predict",
    "--mode=predict --images=TMP": "--output is missing|--mode=predict",
    f"{PREDICT} --images=": "--images is missing|--mode=predict",
    "--images=TMP": "--images belongs to --mode=predict",
    "--mode=analyse --images=TMP": "--images belongs to --mode=predict",
    f"{PREDICT} --images=TMP": "No pictures at TMP",
    f"{PREDICT} --images=TMP/precious.txt": "No run in TMP/run",
    "--config.dataset.stored_size=(300,320)": "raise dataset.stored_size",
    "--config.dataset.window_overlap=320": "window_overlap|less than dataset.stored_size",
    "--config.dataset.window_overlap=-1": "at least 0",
    "--config.dataset.window_overlap=9 --config.dataset.stored_size=7": "height and width",
    "--config.dataset.mixed_pictures=0": "dataset.mixed_pictures is 0",
    "--config.dataset.max_objects=0": "dataset.max_objects is 0",
    f"{OWN}/absent": "TMP/absent|give the folder",
    OWN: "TMP|data.yaml (YOLO)|COCO",
    f"{OWN} --config.dataset.annotations=train.json": "train.json|SPLIT=JSON",
    f"{OWN} '--config.dataset.annotations=val=a.json val=b.json'": "'val' twice",
    f"{OWN} '--config.dataset.annotations=train=a.json val=b.json'": "TMP/a.json",
    f"{OWN} '--config.dataset.name=My data'": "'My data'|name a data set",
    f"{OWN} --config.dataset.data_dir=TMP/precious.txt": "choose another --data_dir",
    "--config.dataset.source=TMP": "prepared|not from TMP|delete this folder",
    "--mode=analyse --config.dataset.name=mine": "'mine' is not prepared|--config.dataset.source=FOLDER",
}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def state():
    """The initial state of a run of `tests.tiny`."""
    config = tiny.tiny_config()
    detector = build_detector(config.detector, len(CLASSES))
    sgd = optimizer.make_optimizer(config, ())
    return train_step.create_state(jax.random.key(0), detector, sgd, tiny.SHAPE, tiny.OBJECTS)


@pytest.fixture
def quick(monkeypatch, state) -> None:
    """Let runs start from a copy of `state`, which saves its initialisation."""
    monkeypatch.setattr(train_step, "create_state", lambda *_, **__: jax.tree.map(jnp.copy, state))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with something to lose."""
    (tmp_path / "precious.txt").write_text("do not touch")
    (tmp_path / "exit.py").write_text("raise SystemExit(3)")
    (tmp_path / "dict.py").write_text("def get_config(): return {}")
    np.savez(tmp_path / "other.npz", **{"conv1/kernel": np.zeros((7, 7, 3, 8)), "layer3.5/conv1/kernel": np.zeros(3)})
    return tmp_path


def check_refusal(ended: tuple[int, str, str], *words: str, start: str = "cfinet_jax: ") -> None:
    """Check that a command ended with status 2 and one line that holds all words."""
    status, _, errors = ended
    assert status == 2, errors
    assert errors.startswith(start) and errors.endswith("\n") and len(errors.splitlines()) == 1
    assert all(word in errors for word in words) and "Traceback" not in errors, errors


@pytest.mark.parametrize("row", COMMANDS)
def test_a_wrong_flag_value_or_path_is_one_line(row, tiny_scenes, folder, quick):
    before = snapshot(folder)
    arguments = shlex.split(row.replace("TMP", str(folder)))
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, folder / "run"), *arguments)
    check_refusal(ended, *COMMANDS[row].replace("TMP", str(folder)).split("|"))
    assert before.items() <= snapshot(folder).items()
    assert not (folder / "absent").exists()


@pytest.mark.parametrize(
    ("mode", "missing"), [("train", "config"), ("analyse", "config"), ("train", "workdir"), ("evaluate", "workdir")]
)
def test_a_missing_flag_is_named(mode, missing, folder):
    given = {"config": f"--config={tiny.__file__}", "workdir": f"--workdir={folder}"}
    del given[missing]
    check_refusal(tiny.call_main(f"--mode={mode}", *given.values()), f"--{missing} is missing")


def test_a_config_of_another_type_is_refused(folder):
    ended = tiny.call_main(f"--config={folder}/dict.py", f"--workdir={folder}/run")
    check_refusal(ended, "--config must return a ConfigDict, not dict")


@pytest.mark.parametrize("key", ["detector.roi_head.hidden", "detector.neck.levels"])
def test_a_workdir_of_another_model_is_refused_for_training(trained, tiny_scenes, quick, key):
    before = snapshot(trained[0])
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, trained[0]), f"--config.{key}=5")
    check_refusal(ended, "another run", key, "is 5", "--workdir")
    assert snapshot(trained[0]) == before


def test_results_of_other_data_are_not_replaced_by_training(trained, tiny_scenes, quick):
    before = snapshot(trained[0])
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, trained[0]), "--config.dataset.eval_split=train")
    check_refusal(ended, "holds results of other data", "split test, images 8; now", "split train, images 16")
    assert snapshot(trained[0]) == before


def test_a_workdir_of_another_model_is_refused_for_evaluation(trained, tiny_scenes, monkeypatch, state):
    wider = dataclasses.replace(state, params=jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), state.params))
    monkeypatch.setattr(train_step, "create_state", lambda *_, **__: wider)
    before = snapshot(trained[0])
    ended = tiny.call_main(*tiny.arguments(tiny_scenes, trained[0]), "--mode=evaluate")
    check_refusal(ended, "another model")
    assert snapshot(trained[0]) == before


@pytest.mark.parametrize(("section", "key"), [("backbone", "widht"), ("imitation", "tau")])
def test_an_unknown_key_in_a_config_file_is_named(monkeypatch, tiny_scenes, folder, section, key):
    config = tiny.tiny_config()
    with config.unlocked():
        config.detector[section][key] = 3
    (folder / "own.py").write_text("from tests import tiny\nget_config = tiny.own")
    monkeypatch.setattr(tiny, "own", lambda: config, raising=False)
    _, *others = tiny.arguments(tiny_scenes, folder)
    check_refusal(
        tiny.call_main(f"--config={folder}/own.py", *others), f"detector.{section}", f"'{key}'", "choose from"
    )


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
def test_a_loss_that_is_not_finite_stops_the_run_or_is_skipped(monkeypatch, tiny_scenes, folder, quick, reaction):
    made = []
    monkeypatch.setattr(training, "make_step", lambda *_: NotFinite())
    monkeypatch.setattr(training, "train_batches", lambda *given: made.append(train_batches(*given)) or made[0])
    monkeypatch.setattr("cfinet_jax.evaluate.detect_split", lambda *_: (columns([]), None))
    arguments = (*tiny.arguments(tiny_scenes, folder), f"--config.training.on_nonfinite={reaction}")
    status, output, errors = ended = tiny.call_main(*arguments)
    with pytest.raises(ValueError, match="closed"):  # its threads would fail while Python exits
        next(made[0])
    settings = tiny.tiny_config().dataset
    settings.data_dir = str(tiny_scenes)
    split = dataset.open_dataset(settings, "train")
    first = next(train_batches(split, windows_of(split, settings, training=True), settings, 0, 8))
    line = f"The loss of step 1 is not finite (image ids {', '.join(map(str, first.image_ids))})"
    if reaction == "stop":
        check_refusal(ended, line, "optimizer.learning_rate", "optimizer.clip_norm", "on_nonfinite=skip")
    else:
        assert (status, errors) == (0, "")
        assert f"{line}: skipped." in output and "The loss of step 2 is not finite" in output
        assert json.loads((folder / "metrics.json").read_text())["AP"] == 0


def coco(images: list, annotations: list, categories: tuple = CLASSES) -> dict:
    """Return the content of a COCO file of pictures named `N.png`."""
    named = [{"id": n, "name": name} for n, name in enumerate(categories, 1)]
    described = [{"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in images]
    return {"images": described, "annotations": annotations, "categories": named}


@pytest.fixture
def pictures(folder, rng) -> Path:
    """The folder with eight pictures, 1.png to 8.png."""
    for number in range(1, 9):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    return folder


def prepare_coco(
    folder: Path, content: dict | bytes, splits: tuple[str, ...] = ("train", "test")
) -> tuple[int, str, str]:
    """Prepare one annotation file as several splits."""
    (folder / "own.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    annotations = [f"--annotations={split}=own.json" for split in splits]
    return prepared.command("coco", f"--source={folder}", f"--data_dir={folder}/prepared", *annotations)


FILES = {
    "not JSON": (b"{", "JSON"),
    "not text": (b"\xff\xd8", "JSON"),
    "not COCO": (b"[]", "COCO|'images'"),
    "COCO in part": ({"images": [], "categories": []}, "COCO|'annotations'"),
    "image without size": ({**coco([], []), "images": [{"id": 1, "file_name": "a"}]}, "'images'"),
    "file name of another type": (
        {**coco([], []), "images": [{"id": 1, "file_name": 5, "height": 1, "width": 1}]},
        "'file_name'|'images'",
    ),
    "class name of another type": ({**coco([], []), "categories": [{"id": 1, "name": None}]}, "'name'"),
    "repeated image id": (coco([1, 1], []), "id 1|'images'"),
    "huge image id": (coco([2**40], []), "below 2^31"),
    "no class": (coco([1], [], ()), "class"),
    "no picture": (coco([77, 78], []), "image"),
    "no object": (coco([1, 2], []), "object"),
}


@pytest.mark.parametrize("row", FILES)
def test_a_broken_annotation_file_is_one_line(row, pictures):
    content, words = FILES[row]
    before = snapshot(pictures)
    check_refusal(prepare_coco(pictures, content), "own.json", *words.split("|"), start="")
    assert before.items() <= snapshot(pictures).items()
    assert not list(pictures.glob("prepared/coco/*"))


PREPARATIONS = {  # arguments: words of the line
    "coco": "--data_dir|--help",
    "cocoa --data_dir=TMP": "'cocoa'",
    "coco --data_dir=TMP": "--source=FOLDER",
    "own --data_dir=TMP": "--source=FOLDER",
    "yolo --data_dir=TMP": "--source=FOLDER",
    "yolo --data_dir=TMP --source=TMP --annotations=train=a": "--annotations",
    "yolo --data_dir=TMP/prepared --source=TMP": "TMP/data.yaml",
    "own --data_dir=TMP/prepared --source=TMP": "data.yaml (YOLO)|COCO",
    "visdrone --data_dir=TMP": "--source=FOLDER",
    "ai_tod --data_dir=TMP --source=TMP --annotations=train=a": "--annotations",
    "visdrone --data_dir=TMP/prepared --source=TMP": "VisDrone2019-DET-train",
    "ai_tod --data_dir=TMP/prepared --source=TMP": "annotations/aitod_SPLIT",
    "tiny_person --data_dir=TMP/prepared --source=TMP": "annotations/tiny_set_SPLIT.json",
    "hit_uav --data_dir=TMP/prepared --source=TMP/absent": "TMP/absent|folder",
    "coco --data_dir=TMP/prepared --source=TMP/absent": "TMP/absent|folder",
    "coco --data_dir=TMP --source=TMP --annotations=own.json": "SPLIT=JSON",
    "coco --data_dir=TMP --source=TMP --annotations=train=no.json": "no.json",
    "coco --data_dir=TMP --source=TMP --annotations=a=b --annotations=a=c": "'a' twice",
    "coco --data_dir=TMP --source=TMP --annotations=a=b '--name=My data'": "'My data'|name a data set",
    "scenes --data_dir=TMP --source=TMP": "leave out --source",
    "scenes --data_dir=TMP/precious.txt": "choose another --data_dir",
    "sodad --data_dir=TMP": "--source=FOLDER",
    "sodad --data_dir=TMP --source=TMP --annotations=train=a": "--annotations",
    "sodad --data_dir=TMP/prepared --source=TMP --windows": "Annotations/SPLIT.json",
    "sodad --data_dir=TMP/prepared --source=TMP/absent": "TMP/absent|Annotations/SPLIT.json",
    "coco --data_dir=TMP --source=TMP --windows": "--windows|sodad",
}


@pytest.mark.parametrize("row", PREPARATIONS)
def test_a_wrong_argument_of_the_preparation_is_one_line(row, folder):
    before = snapshot(folder)
    words = PREPARATIONS[row].replace("TMP", str(folder)).split("|")
    check_refusal(prepared.command(*shlex.split(row.replace("TMP", str(folder)))), *words, start="")
    assert snapshot(folder) == before


def test_a_bucket_without_its_package_is_one_line(folder, tiny_scenes, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("coco", "yolo", "own", "visdrone", "hit_uav"):
        ended = prepared.command(name, f"--data_dir={folder}", "--source=gs://bucket/data")
        check_refusal(ended, "gs://bucket/data", "pip install gcsfs", start="")
    for flag in ("workdir", "config.dataset.data_dir", "config.training.pretrained"):
        ended = tiny.call_main(*tiny.arguments(tiny_scenes, folder / "run"), f"--{flag}=gs://bucket/there")
        check_refusal(ended, "gs://", "pip install gcsfs")


BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
PROBLEMS = [  # an annotation and its problem
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
    ("break_picture", "words"),
    [
        (lambda path: path.unlink(), "read"),
        (lambda path: path.write_bytes(b""), "decoded"),
        (lambda path: path.write_bytes(path.read_bytes()[:999]), "decoded"),
        (lambda path: cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8)), "320 x 320"),
    ],
    ids=["missing", "empty", "truncated", "resized"],
)
def test_a_picture_that_changed_after_preparation_is_named(pictures, quick, break_picture, words):
    assert prepare_coco(pictures, coco(range(1, 9), [BOX]))[0] == 0
    break_picture(pictures / "5.png")
    arguments = (*tiny.arguments(pictures / "prepared", pictures / "run"), "--config.dataset.name=coco")
    check_refusal(tiny.call_main(*arguments), "5.png", words)


def test_a_prepared_data_set_that_lost_a_file_is_refused(tiny_scenes, folder):
    shutil.copytree(tiny_scenes, folder / "prepared")
    for file in (folder / "prepared").glob("scenes/*/*train*"):
        file.unlink()
    ended = tiny.call_main(*tiny.arguments(folder / "prepared", folder / "run"))
    check_refusal(ended, "scenes-train.array_record-00000-of-00001 is missing")


def test_training_on_pictures_without_objects_has_finite_losses(pictures):
    assert prepare_coco(pictures, coco(range(1, 9), []), ("val", "test"))[0] == 0
    arguments = (*tiny.arguments(pictures / "prepared", pictures / "run"), "--config.dataset.name=coco")
    status, output, errors = tiny.call_main(*arguments, "--config.dataset.train_split=val")
    assert (status, errors) == (0, "")
    assert "After 16 images: AP n/a" in output
    records = [json.loads(line) for line in (pictures / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["train", "train", "eval"]
    assert all(np.isfinite(record["loss"]) and record["loss/roi/box"] == 0 for record in records[:2])
    assert json.loads((pictures / "run" / "metrics.json").read_text())["AP"] is None
