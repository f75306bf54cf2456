"""Settings, logs and progress of a run."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem

from cfinet_jax.errors import UserError
from cfinet_jax.runtime import log, progress
from cfinet_jax.runtime.log import RunLog
from cfinet_jax.runtime.progress import Progress, track
from cfinet_jax.runtime.settings import has_learnt, read_settings, write_settings
from tests import tiny


def test_settings_hold_config_classes_versions_and_machine(tmp_path):
    config = tiny.tiny_config()
    write_settings(config, epath.Path(tmp_path) / "new" / "run", ["car", "bus"], [3, 5])
    settings = json.loads((tmp_path / "new" / "run" / "settings.json").read_text())
    assert settings["config"] == json.loads(config.to_json())
    assert settings["config"]["detector"]["backbone"]["width"] == 8
    assert settings["classes"] == ["car", "bus"] and settings["category_ids"] == [3, 5]
    assert {"python", "jax", "flax", "numpy", "cfinet-jax"} <= settings["versions"].keys()
    assert len(settings["machine"]["devices"]) == 8
    assert settings["revision"] == "unknown" or len(settings["revision"].removesuffix("-dirty")) == 40


def test_a_workdir_of_another_model_is_refused(tmp_path):
    config, file = tiny.tiny_config(), tmp_path / "settings.json"
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    file.write_text(json.dumps({"config": json.loads(config.to_json()), "classes": ["car"], "category_ids": [1]}))
    config.training.images = 3000  # not of the model
    write_settings(config, epath.Path(tmp_path), ["car"], [1])
    before = file.read_text()
    assert json.loads(before)["config"]["training"]["images"] == 3000
    for key, value in (("detector.imitation.temperature", 0.1), ("dataset.mean", (9.0, 9.0, 9.0)), ("seed", 7)):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=f"another run \\({key} was .*, is .*{str(value).strip('()')}"):
            write_settings(changed, epath.Path(tmp_path), ["car"], [1])
        assert file.read_text() == before


@pytest.mark.parametrize(
    ("classes", "differs"),
    [
        (["bus", "car", "Van"], "class 1 was 'car', is 'bus'"),
        (["car", "Van", "bus"], "class 2 was 'bus', is 'Van'"),
        (["car", "bus", "van"], "class 3 was 'Van', is 'van'"),
        (["car", "bus"], "3 classes before, 2 now"),
        (["car", "bus", "Van", "boat"], "3 classes before, 4 now"),
    ],
)
def test_a_workdir_of_other_classes_is_refused(tmp_path, classes, differs):
    workdir, config = epath.Path(tmp_path), tiny.tiny_config()
    write_settings(config, workdir, ["car", "bus", "Van"], [3, 5, 7])
    (workdir / "checkpoints" / "8").mkdir(parents=True)
    before = (workdir / "settings.json").read_text()
    with pytest.raises(UserError, match=f"other classes than the data have \\({differs}\\)"):
        write_settings(config, workdir, classes, list(range(len(classes))))
    assert (workdir / "settings.json").read_text() == before
    write_settings(config, workdir, ("car", "bus", "Van"), [3, 5, 7])


@pytest.mark.parametrize(
    ("classes", "category_ids"),
    [
        (None, None),
        ([], []),
        (["car", None], [1, 2]),
        ("c", [1]),
        (["car"], []),
        (["car"], ["1"]),
        ({"car": 1}, [1]),
        (["car", "car"], [1, 2]),
        (["car", "bus"], [1, 1]),
    ],
)
def test_settings_without_valid_classes_are_damaged(tmp_path, classes, category_ids):
    workdir = epath.Path(tmp_path)
    write_settings(tiny.tiny_config(), workdir, ["car"], [1])
    facts = json.loads((workdir / "settings.json").read_text())
    facts |= {"classes": classes, "category_ids": category_ids}
    (workdir / "settings.json").write_text(json.dumps(facts))
    assert read_settings(workdir) is None


@pytest.mark.parametrize(
    ("key", "value"), [("classes", ["bus", "car"]), ("category_ids", [5, 3]), ("config", {"detector": {"neck": 5}})]
)
def test_settings_that_were_edited_are_told(tmp_path, capsys, key, value):
    workdir = epath.Path(tmp_path)
    write_settings(tiny.tiny_config(), workdir, ["car", "bus"], [3, 5])
    text = (workdir / "settings.json").read_text()
    assert read_settings(workdir) is not None and capsys.readouterr().out == ""
    facts = json.loads(text)
    facts[key] = facts[key] | value if isinstance(value, dict) else value
    (workdir / "settings.json").write_text(json.dumps(facts))
    read_settings(workdir)
    assert "settings.json was edited after the run wrote it" in capsys.readouterr().out
    del facts["seal"]  # as in runs of earlier versions
    (workdir / "other").mkdir()
    (workdir / "other" / "settings.json").write_text(json.dumps(facts))
    read_settings(workdir / "other")
    assert capsys.readouterr().out == ""


def test_settings_may_have_a_byte_order_mark(tmp_path):
    write_settings(tiny.tiny_config(), epath.Path(tmp_path), ["car"], [1])
    facts, content = read_settings(epath.Path(tmp_path)), (tmp_path / "settings.json").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "settings.json").write_text(content, encoding)
        assert facts is not None and read_settings(epath.Path(tmp_path)) == facts


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_damaged_settings_are_named(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    with pytest.raises(UserError, match="settings.json is missing or damaged"):
        write_settings(tiny.tiny_config(), epath.Path(tmp_path), ["car"], [1])


def test_a_resumed_run_appends_its_events_and_a_new_run_starts_a_new_log(tmp_path):
    log = RunLog(epath.Path(tmp_path), step=0)
    log.write("train", 1, 8, {"loss": 2.5})
    log.close()
    resumed = RunLog(epath.Path(tmp_path), step=4)
    resumed.write("eval", 1, 8, {"AP": None, "AP50": 0.25})
    resumed.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"kind": "train", "step": 1, "images": 8, "loss": 2.5},
        {"kind": "eval", "step": 1, "images": 8, "AP": None, "AP50": 0.25},
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))
    with (tmp_path / "metrics.jsonl").open("ab") as file:  # beyond the checkpoint, not text, and cut off by a kill
        file.write(b'{"kind": "train", "step": 7}\n\xff\x80\n{"kind": "tra')
    RunLog(epath.Path(tmp_path), step=4).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 1]
    RunLog(epath.Path(tmp_path), step=0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Replace the clock by one that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    clock.perf_counter = clock.monotonic = clock.time = lambda: clock.now
    for module in (progress, log):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> epath.Path:
    """Return a folder at a `gs://` path, where appending fails; TensorBoard's file is elsewhere."""

    class Store(LocalFileSystem):
        @classmethod
        def _strip_protocol(cls, path: Any) -> str:
            return super()._strip_protocol(str(path).replace("gs:/", str(tmp_path)))

        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            assert mode in ("rb", "wb")
            return super()._open(path, mode, **options)

        def glob(self, path: str, **options: Any) -> list[str]:
            if not (tmp_path / "bucket").exists():
                raise FileNotFoundError(path)
            return [found.removeprefix(f"{tmp_path}/") for found in super().glob(path, **options)]

    store, events = Store(auto_mkdir=True), log.EventsWriter
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda _: store)
    monkeypatch.setattr(log, "EventsWriter", lambda _: events(str(tmp_path / "events")))
    return epath.Path("gs://bucket/run")


def test_a_bucket_gets_the_log_once_a_minute_and_before_a_checkpoint(bucket, clock):
    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (bucket / "metrics.jsonl").read_text().splitlines()]

    events = RunLog(bucket, step=0)
    events.write("train", 1, 8, {"loss": 2.5})
    assert steps() == []
    clock.now += log.BUCKET_PAUSE
    events.write("train", 2, 16, {"loss": 2.0})
    events.write("train", 3, 24, {"loss": 1.5})
    assert steps() == [1, 2]
    events.flush()
    assert steps() == [1, 2, 3]
    events.write("train", 4, 32, {"loss": 1.0})
    events.close()
    assert steps() == [1, 2, 3, 4]
    RunLog(bucket, step=2).close()
    assert steps() == [1, 2]


def test_a_checkpoint_in_a_bucket_counts_once_it_is_marked(bucket):
    assert not has_learnt(bucket)
    (bucket / "checkpoints" / "8" / "state").mkdir(parents=True)
    assert not has_learnt(bucket)
    (bucket / "checkpoints" / "8" / "commit_success.txt").write_text("")
    assert has_learnt(bucket)


def test_progress_without_a_terminal_is_a_few_plain_lines(clock, capsys):
    training = Progress("Training", total=2000, done=1000)
    clock.now += 60  # compiling
    training.restart_clock()
    for _ in range(10):
        clock.now += 5
        training.advance(100, {"loss": 1.23456})
    training.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Training  55%  1,100/2,000 images  loss 1.235  20.0 images/s  0:45 left"
    assert len(lines) == 6 and lines[-1].startswith("Training 100%  2,000/2,000")
    assert not any("\r" in line or "\033" in line for line in lines)


def test_progress_on_a_terminal_is_one_moving_line(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert list(track("abcd", "Checking")) == ["a", "b", "c", "d"]
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and output.endswith("\n") and output.startswith("\r")
    assert "Checking  25%" in output and "Checking 100%  4/4" in output and "Checking  50%" not in output
