"""Paths that users name: on a disk, in a home folder or in a bucket, and addresses that nobody can open."""

import pytest
from etils import epath

from cfinet_jax import own_data, training
from cfinet_jax.buckets import user_path
from cfinet_jax.dataset import prepared_folder
from cfinet_jax.errors import UserError
from cfinet_jax.predict import load
from tests import tiny

ADDRESSES = ["s3://bucket/run", "http://host/run", "https://host/run", "foo://a/b", "file:///tmp/run", "://x", "GS://b"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_cannot_be_opened_are_one_line(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.tiny_config()
    config.dataset.data_dir = address
    named = "--config.dataset.name=mine"
    for fail in (
        lambda: user_path(address),
        lambda: own_data.absolute(address),
        lambda: prepared_folder(config.dataset),
        lambda: load(address),
        lambda: training.train(config, address),
    ):
        with pytest.raises(UserError, match="is an address that cannot be opened: give a path on a disk, or gs://"):
            fail()
    for more in (
        [f"--workdir={address}"],
        [f"--config.dataset.data_dir={address}"],
        [f"--config.dataset.source={address}", named],
        ["--mode=predict", f"--images={address}", "--output=found"],
        ["--mode=predict", "--images=pictures", f"--output={address}"],
    ):
        status, _, errors = tiny.call_main(*tiny.arguments(tmp_path, tmp_path / "run"), *more)
        assert status == 2 and errors.startswith(f"cfinet_jax: {address} is an address") and errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = epath.Path(tmp_path)
    assert user_path("~") == home and user_path("~/runs/a") == home / "runs" / "a"
    assert user_path("a~b/~") == epath.Path("a~b/~") and user_path("/x/~/y") == epath.Path("/x/~/y")
    assert str(user_path("gs://bucket/~x")) == "gs://bucket/~x"
    assert own_data.absolute("~/data") == home / "data"
    (home / "prepared" / "scenes" / "1.0.0").mkdir(parents=True)
    (home / "prepared" / "scenes" / "1.0.0" / "dataset_info.json").write_text("{}")
    config = tiny.tiny_config()
    config.dataset.data_dir = "~/prepared"
    assert prepared_folder(config.dataset) == home / "prepared" / "scenes" / "1.0.0"
    for fail in (lambda: load("~/absent"), lambda: load(epath.Path("~/absent"))):
        with pytest.raises(UserError, match=f"No run in {home}/absent"):
            fail()
    status, _, errors = tiny.call_main("--mode=export", "--workdir=~/absent")
    assert status == 2 and f"No run in {home}/absent" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
