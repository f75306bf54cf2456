"""The runs of a study, one after another: finished ones are skipped, one that fails does not stop the rest."""

import traceback
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import NO_SPACE, Unwritable, UserError
from cfinet_jax.runtime.files import replace_text
from cfinet_jax.runtime.interruption import requests
from cfinet_jax.runtime.lock import InUse, locked
from cfinet_jax.studies.ablate.study import Study, config_of, digest
from cfinet_jax.training import train


class Run(NamedTuple):
    """A row of a study from one seed."""

    row: str
    seed: int
    config: ConfigDict
    folder: epath.Path  # its workdir

    @property
    def name(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it is trained, evaluated and reported."""
        return (self.folder / "finished").exists()

    @property
    def failure(self) -> str | None:
        """Why it broke off, if the last try did, in one line."""
        path = self.folder / "failure.txt"
        if self.finished or not path.exists():
            return None
        return next(iter(path.read_bytes().decode(errors="replace").splitlines()), f"unknown, {path} is empty")


def runs_of(study: Study, config: ConfigDict, workdir: epath.Path, seeds: int) -> list[Run]:
    """Those of all rows, a row's seeds together. Raises `UserError` for a row that cannot be set."""
    runs = []
    for row in study.rows:
        changed = config_of(row, config)
        for seed in range(config.seed, config.seed + seeds):
            seeded = changed.copy_and_resolve_references()
            seeded.seed = seed
            runs.append(Run(row.name, seed, seeded, workdir / "runs" / digest(changed) / f"seed_{seed}"))
    return runs


def run_all(runs: list[Run]) -> None:
    """Runs what is not finished; what another process is at is left to it.

    A run goes on from its newest checkpoint. What is compiled for a row serves all of its seeds. Raises `Interrupted`
    after SIGTERM or SIGINT, with everything saved.
    """
    experiment, programs = "", {}
    with requests():  # a training has its own; this one is for the time between them
        for number, run in enumerate(runs, start=1):
            if run.finished:
                continue
            if digest(run.config) != experiment:
                experiment, programs = digest(run.config), {}
            try:
                with locked(run.folder / "claim"):
                    if not run.finished:
                        print(f"\nRun {number} of {len(runs)}: {run.name}, in {run.folder}", flush=True)
                        try_once(run, programs)
            except InUse:
                print(f"{run.name}: another process is at it.", flush=True)


def try_once(run: Run, programs: dict[str, Any]) -> None:
    """Trains, evaluates and reports; a failure is written down, unless it would be that of every run."""
    (run.folder / "failure.txt").unlink(missing_ok=True)
    try:
        train(run.config, run.folder, programs)
    except Exception as error:
        if isinstance(error, Unwritable) or (isinstance(error, OSError) and error.errno in NO_SPACE):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        known = isinstance(error, UserError)
        line = reason if known else f"{type(error).__name__}: {reason[:300]}"
        replace_text(run.folder / "failure.txt", line + "\n" + ("" if known else traceback.format_exc()))
        print(f"{run.name} failed: {line}", flush=True)
    else:
        (run.folder / "finished").touch()
