"""The installed package is whole: built as a wheel, installed away from the checkout, it trains and detects."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TINY = [f"--config.dataset.{setting}" for setting in ("max_objects=8", "batch_size=2", "eval_batch_size=2")]
TINY += [f"--config.training.{setting}" for setting in ("images=2", "log_every_images=2", "checkpoint_every_images=2")]
TINY += ["--config.evaluation.every_images=2", "--config.detector.roi_head.hidden=16"]
PYTHON = """
import cfinet_jax

config = cfinet_jax.get_config("coco:small")
config.dataset.update(name="yolo", source="yolo", batch_size=2, eval_batch_size=2)
config.detector.roi_head.hidden = 16
config.training.update(images=2, checkpoint_every_images=2)
assert "AP50" in cfinet_jax.train(config, "runs/python")
print(len(cfinet_jax.load("runs/python").predict(["yolo/images/val/0.png"])[0].scores))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `bin` of an environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    venv.create(folder / "venv", with_pip=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # whose own .pth files are not read
    return folder / "venv/bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder away from the checkout with data in three formats: COCO, YOLO and DOTA."""
    folder, rng = tmp_path_factory.mktemp("away"), np.random.default_rng(0)
    for split in ("train", "val"):
        images = []
        for kind, labels in (("coco", "."), ("yolo", f"labels/{split}"), ("dota", f"{split}/labelTxt")):
            (folder / kind / labels).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
            for path in (f"coco/{split}", f"yolo/images/{split}", f"dota/{split}/images"):
                (folder / path).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / path / f"{number}.png"), picture)
            (folder / f"yolo/labels/{split}/{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
            (folder / f"dota/{split}/labelTxt/{number}.txt").write_text("20 20 40 22 39 34 19 32 car 0\n")
            images.append({"id": number, "file_name": f"{split}/{number}.png", "height": 64, "width": 64})
        boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [20, 20, 16, 16]} for k in range(2)]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
        (folder / "coco" / f"{split}.json").write_text(json.dumps(content))
    (folder / "yolo/data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]\n")
    return folder


def run(installed: Path, place: Path, *arguments: str) -> str:
    """Run an installed command in an environment without a checkout, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    command = [installed / arguments[0], *arguments[1:]]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_command_works_away_from_the_checkout(installed, place):
    assert "scenes" in run(installed, place, "cfinet_jax") and not (place / "prepared").exists()
    for name, config in (("coco", "coco:small"), ("dota", "oriented:small")):
        data = [f"--config={config}", f"--config.dataset.name={name}", f"--config.dataset.source={name}", *TINY]
        run(installed, place, "cfinet_jax", "train", *data, f"--workdir=runs/{name}")
        if name == "coco":
            run(installed, place, "cfinet_jax", "analyse", *data, f"--workdir=runs/{name}")
    run(installed, place, "cfinet_jax", "evaluate", "--workdir=runs/coco")
    run(installed, place, "cfinet_jax", "predict", "--workdir=runs/coco", "--images=coco/val", "--output=found")
    found = json.loads((place / "found/detections.json").read_text())
    run(installed, place, "cfinet_jax", "export", "--workdir=runs/coco")
    run(
        installed, place, "cfinet_jax", "metrics", "--protocol=coco", "--annotations=coco/val.json",
        "--detections=runs/coco/detections.json", "--output=metrics.json",
    )  # fmt: skip
    run(installed, place, "cfinet_jax", "pretrained", "runs/coco/export/weights.safetensors", "--output=w.safetensors")
    assert isinstance(found, list) and (place / "metrics.json").exists() and (place / "w.safetensors").exists()


@pytest.mark.slow
def test_python_works_away_from_the_checkout(installed, place):
    assert run(installed, place, "python", "-c", PYTHON).splitlines()[-1].isdigit()
