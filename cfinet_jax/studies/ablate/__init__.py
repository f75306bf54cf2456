"""A study of several runs: train its rows from the same seeds, compare them, and say what can be claimed."""

from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.build import check_start, check_values, discover_sizes
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.models.detector import build_detector
from cfinet_jax.studies.ablate import anchor_figure, devices, study_page
from cfinet_jax.studies.ablate.intervals import reopen_damaged
from cfinet_jax.studies.ablate.runs import Run, run_all, runs_of
from cfinet_jax.studies.ablate.study import load_study


def ablate(config: ConfigDict, workdir: epath.Path, study: str, seeds: int, given: str | None) -> None:
    """Runs the study of that name, every row from `seeds` seeds, and leaves `<study>.html` in the workdir.

    `given` are numbers of devices, one run on each at a time; None: one run after another, on all. The same command
    goes on with what is not finished.

    Raises:
      UserError: the study cannot be set up, or a run failed or is not finished; the rest is, and reported by then.
    """
    shared = devices.leave_to_helpers(given, workdir) if given and not devices.is_helper() else []
    config = discover_sizes(config, workdir)
    loaded, name = load_study(study, config), study.rpartition(":")[2]
    if loaded.measure == "anchors":
        return anchor_figure.write(loaded, config, workdir, name)
    if loaded.measure.startswith("proposals/") and not config.evaluation.proposals:
        raise UserError(f"The study {name} compares proposals: set evaluation.proposals.")
    if loaded.measure == "AP" and PROTOCOLS[config.evaluation.protocol].toolkit:
        raise UserError(f"{config.evaluation.protocol} cannot resample pictures: set evaluation.protocol=visdrone.")
    prepared = dataset.open_dataset(config.dataset, config.dataset.eval_split)
    runs = runs_of(loaded, config, workdir, seeds)
    for run in runs:  # before anything is trained
        check_values(run.config)
        check_start(run.config)
        build_detector(run.config.detector, len(prepared.classes))
    if devices.is_helper():
        return run_all(runs)
    reopen_damaged(runs, loaded.measure)
    if shared:
        devices.run_on(shared, runs, workdir)
    else:
        run_all(runs)
    study_page.write(loaded, runs, prepared, config, workdir, name)
    check_finished(runs)


def check_finished(runs: list[Run]) -> None:
    """Raises `UserError` that says which runs are not, and why, where that is known."""
    failed = [run for run in runs if run.failure]
    missing = [run.name for run in runs if not (run.finished or run.failure)]
    lines = []
    if failed:
        lines.append(
            f"{len(failed)} of {len(runs)} runs failed, the first ({failed[0].name}) with: {failed[0].failure}"
        )
    if missing:
        lines.append(
            f"{len(missing)} of {len(runs)} runs are not finished ({'; '.join(missing)}): another process is at "
            "them, or broke off."
        )
    if lines:
        raise UserError(f"{' '.join(lines)} The same command goes on with what is left.")
