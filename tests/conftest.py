"""Every test runs on eight CPU devices, with shapes and types checked where they are annotated."""

import os
from collections.abc import Callable
from pathlib import Path

# JAX reads these when it is imported, and processes started by a test inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Half of the time would be LLVM's, to make code fast that runs once.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CFINET_JAX_TRACEBACK", "1")  # an unexpected error is never hidden from a test

import hypothesis
import numpy as np
import pytest
from etils import epath

# No deadline: the first example of a test pays for compiling it.
hypothesis.settings.register_profile("local", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: at the end one of two processes would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Load the arrays of `tests/golden/NAME.npz`; a file that is absent fails the test."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory) -> epath.Path:
    """The `data_dir` of scenes as few as `tests.tiny` asks for, made once."""
    from tests import tiny  # not above: JAX must not be imported before its variables are set

    return tiny.prepare_scenes(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def trained(tiny_scenes, tmp_path_factory) -> tuple[Path, str]:
    """The workdir and the output of a run of `tests.tiny`; to be left as it is."""
    from tests import tiny

    workdir = tmp_path_factory.mktemp("trained")
    status, output, errors = tiny.call_main(*tiny.arguments(tiny_scenes, workdir))
    assert (status, errors) == (0, ""), errors
    return workdir, output
