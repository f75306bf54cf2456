"""A checkpoint restores the whole state and the position in the data, or ends in one line that says why not."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from cfinet_jax import checkpoint
from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.structures import ExemplarMemory
from cfinet_jax.train_step import TrainState, with_average

POSITION = {"next": 12, "window": [1, 2]}


def make_state(
    step: int = 7, width: int = 3, parts: int = 1, remembers: bool = True, averages: bool = False
) -> TrainState:
    """A small state in which no two arrays are alike."""
    keys = iter(jax.random.split(jax.random.key(step), 20))
    params = {f"part{index}": {"kernel": jax.random.normal(next(keys), (width, 2))} for index in range(parts)}
    sgd = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(0.1))
    momentum = jax.tree.map(lambda x: x + jax.random.normal(next(keys), x.shape), sgd.init(params))
    features = jax.random.normal(next(keys), (2, 3, 7, 7, 4))
    memory = ExemplarMemory(features, jnp.array([1, 2]), jnp.array([3, 2])) if remembers else None
    statistics = {"bn": {"mean": jax.random.normal(next(keys), (5,))}}
    average = jax.tree.map(lambda x: x + 1, params) if averages else None
    return TrainState(jnp.array(step), params, statistics, momentum, memory, average)


def test_state_and_position_are_restored(tmp_path):
    state = make_state()
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoint.save(checkpoints, state, POSITION)
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        restored = checkpoint.restore(checkpoints, jax.tree.map(jnp.zeros_like, state))
    assert restored is not None and restored[1] == POSITION
    assert jax.tree.structure(restored[0]) == jax.tree.structure(state)
    for leaf, expected in zip(jax.tree.leaves(restored[0]), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(leaf, expected)
        assert leaf.dtype == expected.dtype


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_an_average_is_restored_if_there_is_one_and_begins_or_ends_where_a_run_resumes(saved, wanted, tmp_path):
    state, template = make_state(averages=saved), make_state(step=1, averages=wanted)
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoint.save(checkpoints, state, POSITION)
        assert ("average" in checkpoints.item_metadata(7).state.tree) == saved
        restored = checkpoint.restore(checkpoints, template)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[0], state)
    resumed = with_average(restored[0], wanted)
    expected = (state.average if saved else state.params) if wanted else None
    jax.tree.map(np.testing.assert_array_equal, resumed.average, expected)
    jax.tree.map(np.testing.assert_array_equal, resumed.evaluated["params"], expected or state.params)


def test_a_checkpoint_is_complete_before_the_next_step_donates_its_buffers(tmp_path):
    state = make_state()
    expected = jax.device_get(state)
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoint.save(checkpoints, state, 0)
        jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)(state)
        restored = checkpoint.restore(checkpoints, make_state(step=1))
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[0], expected)


def test_a_checkpoint_is_not_started_without_room_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        with pytest.raises(Unwritable, match="Checkpoint 7 .*0.0 MB are free, .*make room"):
            checkpoint.save(checkpoints, make_state(), 0)
        assert checkpoints.latest_step() is None and not [*checkpoints.directory.iterdir()]


def test_a_fresh_workdir_restores_nothing(tmp_path):
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        assert checkpoint.restore(checkpoints, make_state()) is None
    with checkpoint.open_checkpoints(epath.Path(tmp_path) / "absent", create=False) as checkpoints:
        assert checkpoint.restore(checkpoints, make_state()) is None
    assert not (tmp_path / "absent").exists()


def test_the_newest_checkpoints_are_kept(tmp_path):
    with checkpoint.open_checkpoints(epath.Path(tmp_path), keep=2) as checkpoints:
        for step in (2, 4, 10):
            checkpoint.save(checkpoints, make_state(step), step)
        restored = checkpoint.restore(checkpoints, make_state())
    assert restored is not None and int(restored[0].step) == restored[1] == 10
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {"4", "10"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A workdir with one checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    with checkpoint.open_checkpoints(epath.Path(folder)) as checkpoints:
        checkpoint.save(checkpoints, make_state(), 0)
    return folder


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"width": 4}, "opt_state/0/trace/part0/kernel has the shape (3, 2), in this config (4, 2)"),
        ({"parts": 2}, "opt_state/0/trace/part1/kernel has the shape None, in this config (3, 2)"),
        ({"remembers": False}, "memory/cursor has the shape (2,), in this config None"),
    ],
)
def test_another_model_is_refused_in_one_line(saved, other, difference, capfd):
    with checkpoint.open_checkpoints(epath.Path(saved)) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoint.restore(checkpoints, make_state(**other))
        assert difference in str(error.value) and "another model" in str(error.value)
        assert checkpoint.restore(checkpoints, make_state()) is not None
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A workdir with the checkpoints 5 and 7."""
    folder = tmp_path_factory.mktemp("two")
    with checkpoint.open_checkpoints(epath.Path(folder)) as checkpoints:
        for step in (5, 7):
            checkpoint.save(checkpoints, make_state(step), POSITION | {"step": step})
    return folder


def restored_step(workdir: Path) -> int:
    """Restore a checkpoint, compare its numbers with those that were saved, and return its step."""
    with checkpoint.open_checkpoints(epath.Path(workdir), create=False) as checkpoints:
        restored = checkpoint.restore(checkpoints, make_state(step=1))
    assert restored is not None
    step = int(restored[0].step)
    assert restored[1] == POSITION | {"step": step}
    jax.tree.map(np.testing.assert_array_equal, restored[0], make_state(step))
    return step


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_position_that_the_data_cannot_take_is_damage(two, capsys):
    taken = []

    def seek(position: dict) -> None:
        taken.append(position["step"])
        if position["step"] > newest:
            raise IndexError("out of range")

    with checkpoint.open_checkpoints(epath.Path(two), create=False) as checkpoints:
        newest = 6
        restored = checkpoint.restore(checkpoints, make_state(step=1), seek)
        assert restored is not None and int(restored[0].step) == 5 and taken == [7, 5]
        assert "7 in" in (said := capsys.readouterr().out) and "(out of range): using checkpoint 5 instead" in said
        newest = 4
        with pytest.raises(UserError, match="and there is no other"):
            checkpoint.restore(checkpoints, make_state(step=1), seek)


def test_opening_waits_for_the_thread_that_removes_leftovers(tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    with checkpoint.open_checkpoints(epath.Path(tmp_path)) as checkpoints:
        assert not [*checkpoints.directory.iterdir()] and checkpoints._cleanup_tmp_directory_future is None


@pytest.mark.parametrize("name", [b"lat\xff", b"\xff/run"])
def test_a_workdir_that_orbax_cannot_encode_is_refused(name, tmp_path):
    workdir = epath.Path(tmp_path, os.fsdecode(name))
    for door in (checkpoint.check_workdir, checkpoint.open_checkpoints):
        with pytest.raises(UserError, match="not valid in UTF-8.*: choose another --workdir"):
            door(workdir)
    assert not [*tmp_path.iterdir()]


def test_no_flipped_bit_changes_a_number(two, tmp_path, capsys, rng):
    files = [path.relative_to(two) for path in (two / "checkpoints" / "7").rglob("*") if path.is_file()]
    arrays = max(files, key=lambda path: (two / path).stat().st_size)
    steps = []
    for number, file in enumerate([*files * 2, *[arrays] * 20]):
        workdir = Path(shutil.copytree(two, tmp_path / str(number)))
        flip(workdir / file, int(rng.integers(8 * (workdir / file).stat().st_size)))
        steps.append(restored_step(workdir))  # compares the numbers
    assert {5, 7} == set(steps) and 5 in steps[-20:]
    assert capsys.readouterr().out.count(": using checkpoint 5 instead.\n") == steps.count(5)


def change(path: Path, old: str, new: str) -> None:
    """Replace text in a file, which still parses."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGES = {
    "flipped position": lambda folder: flip(folder / "data" / "metadata", 8 * 20),
    "position missing": lambda folder: (folder / "data" / "metadata").unlink(),
    "position changed": lambda folder: change(folder / "data" / "metadata", "12", "13"),
    "names cut short": lambda folder: (folder / "state" / "_METADATA").write_bytes(b"{"),
    "names zeroed": lambda folder: (folder / "state" / "_METADATA").write_bytes(bytes(99)),
    "names are a folder": lambda folder: [
        (folder / "state" / "_METADATA").unlink(),
        (folder / "state/_METADATA").mkdir(),
    ],
    "manifest cut short": lambda folder: (folder / "state" / "manifest.ocdbt").write_bytes(b"half"),
    "arrays missing": lambda folder: [path.unlink() for path in folder.glob("state/ocdbt.process_0/d/*")],
    "arrays empty": lambda folder: [path.write_bytes(b"") for path in folder.glob("state/ocdbt.process_0/d/*")],
    "arrays zeroed": lambda folder: [
        path.write_bytes(bytes(9999)) for path in folder.glob("state/ocdbt.process_0/d/*")
    ],
    "state missing": lambda folder: shutil.rmtree(folder / "state"),
    "empty folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "checksums cut short": lambda folder: (folder / "checksums.json").write_text("{"),
    "checksums of another state": lambda folder: change(folder / "checksums.json", ": 1", ": 2"),
    "shardings spoilt": lambda folder: (folder / "state" / "_sharding").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used(damage, two, tmp_path, capfd):
    workdir = Path(shutil.copytree(two, tmp_path / "run"))
    DAMAGES[damage](workdir / "checkpoints" / "7")
    files = sorted(workdir.rglob("*"))
    assert restored_step(workdir) == 5
    output, errors = capfd.readouterr()
    assert output.startswith(f"Checkpoint 7 in {workdir}/checkpoints is damaged (") and len(output.splitlines()) == 1
    assert output.endswith("): using checkpoint 5 instead.\n") and "Traceback" not in errors
    assert sorted(workdir.rglob("*")) == files

    DAMAGES[damage](workdir / "checkpoints" / "5")
    with checkpoint.open_checkpoints(epath.Path(workdir)) as checkpoints:
        with pytest.raises(UserError, match="Checkpoint 7 in .* is damaged .*; Checkpoint 5 in .* no other") as error:
            checkpoint.restore(checkpoints, make_state())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", [6, 7, 8])
def test_a_run_saves_over_the_damaged_checkpoint_that_it_skipped(step, two, tmp_path):
    workdir = Path(shutil.copytree(two, tmp_path / "run"))
    DAMAGES["arrays missing"](workdir / "checkpoints" / "7")
    with checkpoint.open_checkpoints(epath.Path(workdir)) as checkpoints:
        checkpoint.restore(checkpoints, make_state())
        checkpoint.save(checkpoints, make_state(step), POSITION | {"step": step})
    assert restored_step(workdir) == step


def test_a_checkpoint_without_checksums_opens(two, tmp_path):
    workdir = Path(shutil.copytree(two, tmp_path / "run"))
    path = workdir / "checkpoints" / "7" / "checksums.json"
    assert json.loads(path.read_text()).keys() > {"data", "step", "params/part0/kernel"}
    path.unlink()
    assert restored_step(workdir) == 7


def put_file(folder: Path) -> None:
    """Put a file where a folder was."""
    shutil.rmtree(folder)
    folder.write_text("in the way")


def read_only(*_, **__) -> None:
    """Fail to write."""
    raise OSError(errno.EROFS, "Read-only file system")


CHANGES = {  # of the workdir under a run
    "deleted": lambda workdir: shutil.rmtree(workdir),
    "renamed": lambda workdir: workdir.rename(workdir.with_name("renamed")),
    "checkpoints deleted": lambda workdir: shutil.rmtree(workdir / "checkpoints"),
    "a file for the workdir": put_file,
    "a file for the checkpoints": lambda workdir: put_file(workdir / "checkpoints"),
    "a closed disk": lambda workdir: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_workdir_that_changes_during_a_run_ends_it_in_one_line(change, two, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(two, tmp_path / "run"))
    with checkpoint.open_checkpoints(epath.Path(workdir)) as checkpoints:
        checkpoint.restore(checkpoints, make_state())
        CHANGES[change](workdir)
        if change == "a closed disk":
            monkeypatch.setattr(type(epath.Path()), "mkdir", read_only)
        with pytest.raises(Unwritable, match="Checkpoint 9 cannot be written to .*: make room") as error:
            checkpoint.save(checkpoints, make_state(9), POSITION)
        assert "\n" not in str(error.value)
    kept = next((folder for folder in (workdir, tmp_path / "renamed") if (folder / "checkpoints" / "7").exists()), None)
    if kept:
        assert restored_step(kept) == 7
