"""Pictures of any size and kind are predicted in windows of one shape; an unreadable one does not affect the others."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from etils import epath
from PIL import Image

import cfinet_jax
from cfinet_jax import predict as predict_mode
from cfinet_jax import prediction_files
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.pictures import decode_image, upright_size
from tests import tiny

NOT_NEEDED = ["grain", "tensorflow_datasets", "array_record"]


@pytest.fixture(scope="module")
def model(trained):
    return cfinet_jax.load(trained[0])


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """A picture of six windows: noise."""
    return np.random.default_rng(0).integers(0, 255, (330, 700, 3), np.uint8)


def test_a_picture_of_one_window_is_detected_as_evaluation_detects_it(model, trained, tiny_scenes):
    settings = tiny.tiny_config().dataset
    settings.data_dir = str(tiny_scenes)
    prepared = dataset.open_dataset(settings, "test")
    results = json.loads((trained[0] / "detections.json").read_text())
    pictures = [dataset.picture(prepared, position) for position in range(3)]
    for (_, image_id, _), prediction in zip(pictures, model.predict([p for p, *_ in pictures]), strict=True):
        expected = [entry for entry in results if entry["image_id"] == image_id]
        assert expected
        found = prediction.coco(image_id)
        assert [entry["category_id"] for entry in found] == [entry["category_id"] for entry in expected]
        for key in ("bbox", "score"):
            ours, theirs = ([entry[key] for entry in entries] for entries in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-3)


def test_a_large_picture_is_cut_and_merged(model, large):
    origins = model.windows_in(large.shape[:2])
    assert len(origins) == 6
    merged = model.predict([large])[0]
    parts = [large[row : row + 320, column : column + 320] for row, column in origins]
    alone = [model.predict([part])[0] for part in parts]
    moved = np.concatenate(
        [p.boxes + np.tile([column, row], 2) for p, (row, column) in zip(alone, origins, strict=True)]
    )
    assert 0 < len(merged.boxes) <= len(moved)
    for box in merged.boxes:
        assert np.abs(moved - box).max(1).min() < 2e-3
    assert (np.diff(merged.scores) <= 0).all() and merged.boxes[:, 2].max() > 400


def test_pictures_share_batches_and_keep_their_order(model, large, monkeypatch):
    calls = []
    whole = model.detect_windows
    monkeypatch.setattr(model, "detect_windows", lambda *a: calls.append(len(a[0])) or whole(*a))
    pictures = [large[:100, :90], large, large[:320, :320], large]
    together = model.predict(pictures)
    assert calls == [8, 6]
    for picture, prediction in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(prediction.boxes, model.predict([picture])[0].boxes)


def test_a_single_picture_of_any_kind_is_a_list_of_one(model, large, tmp_path, monkeypatch):
    colour = np.repeat(large[:50, :60, :1], 3, 2)
    Image.fromarray(colour).save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [colour, colour[..., 0], Image.fromarray(colour), str(tmp_path / "a.png"), tmp_path / "a.png", "~/a.png"]
    expected, *alone = [model.predict(each) for each in given]
    more = [colour.astype(np.uint16) * 257, colour / 255]
    for found in [*alone, *([each] for each in model.predict([*given, *more]))]:
        assert len(found) == 1
        np.testing.assert_array_equal(found[0].boxes, expected[0].boxes)
    model.predict([large, large[:1, :1]])
    assert model.detect._cache_size() == 1  # one program serves every size


def save(folder: Path, name: str, pixels: np.ndarray, **how) -> Path:
    Image.fromarray(pixels).save(folder / name, **how)
    return folder / name


def test_every_kind_of_picture_is_read(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    grey = rgb[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), grey.astype(np.uint16) * 257)
    for path, expected in {
        save(tmp_path, "rgb.png", rgb): rgb,
        save(tmp_path, "grey.png", grey): np.repeat(grey[..., None], 3, 2),
        save(tmp_path, "rgba.png", np.dstack([rgb, np.full((20, 30), 9, np.uint8)])): rgb,
        save(tmp_path, "turned.tiff", rgb): rgb,
        deep: np.repeat(grey[..., None], 3, 2),
    }.items():
        np.testing.assert_array_equal(decode_image(path.read_bytes(), path.name), expected, err_msg=path.name)
        assert upright_size(epath.Path(path)) == (20, 30)
    turned = save(tmp_path, "turned.jpg", np.repeat(grey[..., None], 3, 2), exif=exif, quality=95)
    pixels = decode_image(turned.read_bytes(), "turned.jpg")
    assert pixels.shape == (30, 20, 3) and upright_size(epath.Path(turned)) == (30, 20)
    assert np.abs(pixels[..., 0].astype(int) - np.rot90(grey, -1)).mean() < 8


@pytest.fixture(scope="module")
def shown(model, large) -> float:
    """A score that about half of the detections reach."""
    scores = np.unique(model.predict([large])[0].scores)
    assert len(scores) > 3
    return round(float(scores[len(scores) // 2 - 1 :][:2].mean()), 6)


@pytest.fixture(scope="module")
def predicted(trained, large, shown, tmp_path_factory) -> tuple[Path, Path, str]:
    """A folder of pictures, the output of predicting them, and what was printed."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    for name, pixels in {"large.png": large, "tiny.png": large[:1, :1], "deeper/large.png": large[:40]}.items():
        save(folder, name, pixels)
    (folder / "cut.png").write_bytes((folder / "large.png").read_bytes()[:5000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    output = folder / "out"
    arguments = (f"--images={folder}", f"--output={output}", f"--config.prediction.min_score={shown}")
    ended = tiny.call_main(*tiny.arguments("absent", trained[0]), "--mode=predict", *arguments)
    assert (ended[0], ended[2]) == (0, ""), ended[2]
    shutil.copytree(output, folder.parent / "predicted", dirs_exist_ok=True)
    return folder, folder.parent / "predicted", ended[1]


def test_a_folder_becomes_detections_counts_and_overlays(predicted, shown):
    folder, output, said = predicted
    listed = json.loads((output / "images.json").read_text())
    names = {entry["file_name"]: entry for entry in listed["images"]}
    assert names.keys() >= {"deeper/large.png", "large.png", "tiny.png"} and not names.keys() & {
        "empty.jpg",
        "text.jpg",
    }
    assert (names["large.png"]["height"], names["large.png"]["width"]) == (330, 700)
    results = json.loads((output / "detections.json").read_text())
    assert results and {entry["image_id"] for entry in results} <= {entry["id"] for entry in listed["images"]}
    with (output / "counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == list(names)
    for row in rows:
        of_picture = [e for e in results if e["image_id"] == names[row["picture"]]["id"] and e["score"] >= shown]
        assert int(row["all"]) == len(of_picture) == sum(int(row[c["name"]]) for c in listed["categories"])
        for category in listed["categories"]:
            of_class = [entry for entry in of_picture if entry["category_id"] == category["id"]]
            assert int(row[category["name"]]) == len(of_class)
    total = sum(int(row["all"]) for row in rows)
    assert 0 < total < len(results)
    assert f"{len(rows):,} pictures, {total:,} objects with a score of at least {shown}: {folder / 'out'}" in said
    overlays = {path.name for path in (output / "overlays").iterdir()}
    assert overlays == {f"{name.replace('/', '_')}.png" for name in names}
    assert cv2.imread(str(output / "overlays" / "large.png.png")).shape[1] == 700 * 2
    assert "Predicting 100%" in said and "windows/s" in said


def test_unreadable_pictures_and_outputs_are_reported(trained, predicted, tmp_path):
    folder, _, said = predicted
    for name in ("empty.jpg", "text.jpg"):
        assert f"Left out: image {folder / name} cannot be decoded" in said
    (tmp_path / "file").write_text("")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "text.jpg").write_text("no picture")
    for images, output, line in (
        (folder, tmp_path / "file" / "out", "choose another --output"),
        (tmp_path / "none", tmp_path / "out", "None of the 1 pictures"),
    ):
        status, _, errors = call(trained, images, output)
        assert status == 2 and line in errors and len(errors.splitlines()) == 1


def call(trained, images, output, *more: str) -> tuple[int, str, str]:
    """Predict; return status, output and errors."""
    arguments = ("--mode=predict", f"--images={images}", f"--output={output}", *more)
    return tiny.call_main(*tiny.arguments("absent", trained[0]), *arguments)


def results(output: Path) -> list:
    """Read the output files except the overlays."""
    return [(output / name).read_text() for name in ("detections.json", "images.json", "counts.csv")]


@pytest.fixture
def four(tmp_path, large) -> Path:
    """A folder of four pictures of one window."""
    (tmp_path / "four").mkdir()
    for number in range(4):
        save(tmp_path / "four", f"{number}.png", large[: 100 + number, number * 90 :][:, :90])
    return tmp_path / "four"


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
def test_an_interruption_keeps_what_is_done_and_the_same_command_resumes(
    trained, four, tmp_path, monkeypatch, number, after
):
    assert call(trained, four, tmp_path / "whole")[0] == 0
    drawn, draw = [], predict_mode.write_overlays

    def interrupt(*what) -> None:
        if len(drawn) == after:
            signal.raise_signal(number)
        drawn.append(what)
        draw(*what)

    with monkeypatch.context() as patched:
        patched.setattr(predict_mode, "write_overlays", interrupt)
        status, _, errors = call(trained, four, tmp_path / "out")
    assert status == 75 and f"Stopped by {number.name}" in errors and len(errors.splitlines()) == 1
    assert f"{after} of 4 pictures are done: {tmp_path / 'out'}" in errors
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == after
    with (tmp_path / "out" / "unfinished.jsonl").open("a") as file:
        file.write('{"file_name": "3.png", "torn')  # as a killed process leaves it
    save(four, "0.png", np.zeros((50, 60, 3), np.uint8))  # a changed picture is detected in again
    with monkeypatch.context() as patched:
        patched.setattr(predict_mode, "write_overlays", lambda *what: (drawn.append(what), draw(*what)))
        assert call(trained, four, tmp_path / "out")[0] == 0
    assert len(drawn) == 4 + (after > 0)
    assert call(trained, four, tmp_path / "whole")[0] == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert not list((tmp_path / "out").glob("*unfinished*")) and not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("line", [b'{"file_name": "0.p', b'{"other": 1}', b"[0]", b"[" * 100_000, b'{"a": "\xff"}'])
def test_damaged_lines_of_an_interrupted_prediction_are_dropped(model, tmp_path, line):
    assert prediction_files.resume(model.trained.variables, model.config, epath.Path(tmp_path)) == {}
    entry = {"file_name": "1.png", "height": 1, "width": 2, "checksum": 3, "found": []}
    with (tmp_path / "unfinished.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps(entry).encode() + b"\n" + line)
    for _ in range(2):
        assert prediction_files.resume(model.trained.variables, model.config, epath.Path(tmp_path)) == {"1.png": entry}


def test_other_settings_do_not_resume(trained, four, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unfinished.jsonl").write_text('["other"]\n{"file_name": "0.png"}\n')
    assert call(trained, four, tmp_path / "out")[0] == 0
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 4


@pytest.mark.parametrize("place", ["same", "above", "below", "links"])
def test_the_output_may_be_where_the_pictures_are(trained, four, place):
    output = {"same": four, "above": four.parent, "below": four / "out", "links": four.parent / "link"}[place]
    (four.parent / "link").symlink_to(four)
    for _ in range(2):  # the overlays of the first run are not pictures
        status, said, errors = call(trained, four, output)
        assert (status, errors) == (0, "") and "4 pictures" in said
    overlays = output / "overlays"
    for images in (overlays, overlays / "0.png.png"):
        status, _, errors = call(trained, images, output)
        assert status == 2 and "choose another --output" in errors and len(errors.splitlines()) == 1


def test_overlays_of_earlier_predictions_are_no_pictures_unless_they_are_named(four, tmp_path, capsys):
    (four / "out" / "overlays").mkdir(parents=True)
    shutil.copy(four / "0.png", four / "out" / "overlays")
    names = {f"{number}.png" for number in range(4)}
    images, other = epath.Path(four), epath.Path(tmp_path / "other")
    assert prediction_files.input_files(images, other).keys() == names | {"out/overlays/0.png"}  # anybody's folder
    for name in prediction_files.RESULTS:
        (four / "out" / name).touch()
    assert prediction_files.input_files(images, other).keys() == names
    assert "Left out: 1 overlays" in capsys.readouterr().out
    with pytest.raises(UserError, match="choose another --output or --images"):
        prediction_files.input_files(images / "out", other)
    for named in (images / "out" / "overlays", images / "out" / "overlays" / "0.png"):
        assert prediction_files.input_files(named, other).keys() == {"0.png"}


def test_the_workdir_of_a_run_is_no_output(trained, four):
    """Its detections.json is that of an evaluation."""
    before = (trained[0] / "detections.json").read_bytes()
    status, _, errors = call(trained, four, trained[0])
    assert status == 2 and "is the workdir of a run" in errors and len(errors.splitlines()) == 1
    assert (trained[0] / "detections.json").read_bytes() == before


def test_names_that_are_long_alike_or_not_utf8_have_overlays_of_their_own(trained, large, tmp_path):
    deep = Path("d" * 100, "e" * 100)
    names = ["n" * 251 + ".png", str(deep / ("f" * 76 + ".png")), "a_b.png", "a/b.png", "\u00e4" * 120 + ".png"]
    names.append(os.fsdecode(b"caf\xe9.png"))
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / "in", name, large[:40, :50])
    (tmp_path / "in" / os.fsdecode(b"broken\xe9.png")).write_bytes(b"")
    status, said, errors = call(trained, tmp_path / "in", tmp_path / "out")
    assert (status, errors) == (0, ""), errors
    assert "broken\\udce9.png cannot be decoded" in said
    listed = [each["file_name"] for each in json.loads((tmp_path / "out" / "images.json").read_text())["images"]]
    assert sorted(listed) == sorted(names)
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == len(names)
    assert "caf\\udce9.png" in (tmp_path / "out" / "counts.csv").read_text()


def test_a_home_is_expanded(trained, four, monkeypatch):
    monkeypatch.setenv("HOME", str(four.parent))
    assert call(trained, "~/four", "~/found")[0] == 0
    assert (four.parent / "found" / "counts.csv").exists() and not Path("~").exists()
    monkeypatch.setenv("HOME", str(Path(trained[0]).parent))
    assert cfinet_jax.load(f"~/{Path(trained[0]).name}").trained.classes


def test_pictures_of_16_bits_are_scaled_by_their_common_range(trained, large, tmp_path):
    pixels = large[:100, :90, 0]
    for name, folder in {
        "eight": pixels,
        "twelve": pixels * np.uint16(16),
        "thermal": pixels + np.uint16(7000),
    }.items():
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), folder)
    low, high = np.quantile(pixels, (0.0001, 0.9999))
    stretched = np.interp(pixels, (low, high), (0, 255)).round().astype(np.uint8)
    cv2.imwrite(str(tmp_path / "eight" / "a.png"), stretched)
    said = {
        name: call(trained, tmp_path / name, tmp_path / f"{name}.out")[1] for name in ("eight", "twelve", "thermal")
    }
    assert "Grey values" not in said["eight"]
    for name in ("twelve", "thermal"):
        assert said[name].count("becomes black and") == 1
        assert results(tmp_path / f"{name}.out") == results(tmp_path / "eight.out")
    given = "--config.dataset.grey_range=(0, 4095)"
    assert "Grey values" not in call(trained, tmp_path / "twelve", tmp_path / "given.out", given)[1]


@pytest.mark.parametrize("given", [None, 7, [None], np.zeros((4, 5, 3), np.int64), [np.zeros((4, 5), bool)], b"x"])
def test_anything_but_a_picture_is_refused(model, given):
    with pytest.raises(UserError, match="picture is"):
        model.predict(given)


def test_a_picture_that_cannot_be_read_is_refused(model, large, tmp_path):
    Image.fromarray(large).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.jpg") as cut:
        for given, words in (cut, "truncated"), ("http://x/y.png", "cannot be opened"), ("a\0b", "null byte"):
            with pytest.raises(UserError, match=words):
                model.predict(given)


def test_predicting_needs_no_training_stack(trained, large, tmp_path):
    path = save(tmp_path, "large.png", large[:64, :64])
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({NOT_NEEDED}))\n"
    code = f"import cfinet_jax\nprint(len(cfinet_jax.load({str(trained[0])!r}).predict([{str(path)!r}])))"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("\n1\n"), done.stderr
