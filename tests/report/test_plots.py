"""Plots show the log and the results."""

import json

import cv2
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from cfinet_jax.errors import UserError
from cfinet_jax.metrics.error_types import OUTCOMES
from cfinet_jax.metrics.proposal_scores import endings
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.report import plots


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """All figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures


def write_log(folder, records: list[dict]) -> epath.Path:
    path = epath.Path(folder) / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def is_picture(path) -> bool:
    return cv2.imread(str(path)).std() > 10


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def train_record(step: int, **values: float) -> dict:
    return {"kind": "train", "step": step, "images": 4 * step, **values}


def test_the_learning_curve_shows_the_log(tmp_path, drawn):
    train = [train_record(s, **{"loss": 9.0 / s, "loss/box": 2.0 / s, "loss/new": 0.0}) for s in range(1, 6)]
    stale = train_record(5, **{"loss": 777.0, "loss/box": 777.0})
    evals = [{"kind": "eval", "step": s, "images": 4 * s, "AP": 0.1 * s, "AP50": 0.2 * s} for s in (2, 4)]
    evals.append({"kind": "eval", "step": 5, "images": 20, "AP": None, "AP50": None})
    records = plots.read_log(write_log(tmp_path, [stale, *train, *evals]))
    plots.draw_learning(*records, epath.Path(tmp_path) / "curve.png")
    assert is_picture(tmp_path / "curve.png")
    losses, scores = map(lines, drawn[0].axes)
    assert set(losses) == {"loss", "box", "new"} and set(scores) == {"AP", "AP50"}
    np.testing.assert_allclose(losses["box"], [(4 * s, 2.0 / s) for s in range(1, 6)])
    np.testing.assert_allclose(scores["AP50"], [(8, 40), (16, 80)])


def test_the_curve_of_imitation_shows_quality_and_memory(tmp_path, drawn):
    shares = {"quality": 0.5, "high_quality": 0.2, "low_quality": 0.1}
    values = {f"imitation/{key}": value for key, value in shares.items()} | {"memory/fill": 0.3, "memory/turnover": 0.0}
    plots.draw_imitation([train_record(s, **values) for s in (1, 2)], epath.Path(tmp_path) / "curve.png")
    assert is_picture(tmp_path / "curve.png")
    quality, memory = map(lines, drawn[0].axes)
    assert [line[1, 1] for line in quality.values()] == [0.5, 0.2, 0.1]
    assert [line[1, 1] for line in memory.values()] == [0.3, 0.0]


def test_the_curve_of_imitation_has_a_panel_for_all_that_is_logged(tmp_path, drawn):
    keys = [key for _, panel in plots.IMITATION.values() for key in panel]
    train = [train_record(s, **{key: s / 10 for key in keys}) for s in (1, 2)]
    plots.draw_imitation(train, epath.Path(tmp_path) / "curve.png")
    assert [len(axes.lines) for axes in drawn[0].axes] == [len(panel) for _, panel in plots.IMITATION.values()]


def test_the_curve_of_proposals_shows_every_size(tmp_path, drawn):
    protocol, names = PROTOCOLS["coco"], ("AR300", "per_object")
    records = [
        {"images": 4 * s} | {f"proposals/{n}{e}": 0.1 * s for n in names for e in endings(protocol).values()}
        for s in (1, 2)
    ]
    del records[0]["proposals/AR300_L"], records[1]["proposals/AR300_L"]  # nothing of that size to find
    plots.draw_proposals(records, protocol, epath.Path(tmp_path) / "curve.png")
    assert is_picture(tmp_path / "curve.png")
    recall, number = map(lines, drawn[0].axes)
    assert list(number) == [*protocol.ranges] and number.keys() - recall.keys() == {"L"}
    np.testing.assert_allclose(recall["eS"], [(4, 10), (8, 20)])
    styles = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[1].lines}
    assert len(styles) == len(protocol.ranges)


def test_long_logs_are_averaged(tmp_path, drawn):
    train = [train_record(s, loss=1.0 + s % 2) for s in range(2 * plots.CURVE_POINTS)]
    plots.draw_learning(train, [], epath.Path(tmp_path) / "curve.png")
    (line,) = drawn[0].axes[0].lines
    assert len(line.get_ydata()) == plots.CURVE_POINTS and set(line.get_ydata()) == {1.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no training record"),
        ('{"kind": "tr', "line 1 is not a JSON"),
        ("[1]", "line 1 is not a JSON"),
        ("\xff", "line 1 is not a JSON"),
        ('{"kind": "other", "step": 1, "images": 1}', "line 1 is not a JSON"),
        ('{"kind": "train", "step": 1}', "line 1 is not a JSON"),
    ],
)
def test_unreadable_logs_are_user_errors(tmp_path, text, message):
    (tmp_path / "log").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        plots.read_log(epath.Path(tmp_path) / "log")


def test_curves_of_precision_end_where_recall_does(tmp_path, drawn):
    curves = {f"_class {k} $" + "x" * 40: [0.9] * (k + 1) + [0.0] * (100 - k) for k in range(plots.MOST_CLASSES - 1)}
    plots.draw_precision(curves | {"nothing found": [0.0] * 101}, epath.Path(tmp_path) / "curve.png")
    assert is_picture(tmp_path / "curve.png")
    (axes,) = drawn[0].axes
    assert [len(line.get_xdata()) for line in axes.lines] == [*range(1, plots.MOST_CLASSES), 0]
    np.testing.assert_allclose(axes.lines[3].get_xydata(), [(k, 90) for k in range(4)])
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == len(axes.get_legend().get_texts()) == plots.MOST_CLASSES


def test_bars_of_outcomes_are_shares(tmp_path, drawn):
    counts = np.zeros((3, len(OUTCOMES)), int)
    counts[:2, OUTCOMES.index("true")] = 3, 1
    counts[:2, OUTCOMES.index("background")] = 1, 0
    counts[:2, OUTCOMES.index("missed")] = 0, 1
    plots.draw_outcomes(["all", "car", "_$never seen$_"], counts, epath.Path(tmp_path) / "bars.png")
    assert is_picture(tmp_path / "bars.png")
    detections, objects = drawn[0].axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in detections.containers}
    assert widths["true"] == [75, 100, 0] and widths["background"] == [25, 0, 0] and widths["class"] == [0, 0, 0]
    found, missed = ([bar.get_width() for bar in bars] for bars in objects.containers)
    assert found == [100, 50, 0] and missed == [0, 50, 0]
    assert [label.get_text() for label in objects.get_yticklabels()][:2] == ["all (3)", "car (2)"]
