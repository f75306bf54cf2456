"""`--mode=rules`: positive anchors of a lone object, counted again, and the page."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfinet_jax.models.detector import build_assigners, build_proposal_network
from cfinet_jax.studies.analyse import rules
from tests import plain, tiny


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few places and sizes, to be quick."""
    monkeypatch.setattr(rules, "PLACES", 3)
    monkeypatch.setattr(rules, "SIDES", (6, 16))


def parts(name: str):
    """The network of a name, and every rule that it may have."""
    settings = tiny.settings()
    settings.proposal_network.name = name
    sections = settings.to_dict()
    return build_proposal_network(sections), build_assigners(sections)


def test_positive_anchors_are_counted_in_network_pixels():
    network, assigners = parts("rpn")
    grid = rules.grid_of(network, 2, 1.5)
    assert len(grid.boxes) == len(grid.levels) == 3 * (48**2 + 24**2)
    chosen = {
        name: rule for name, rule in rules.rules_of(network, assigners).items() if name in ("max_iou", "nwd", "rka")
    }
    positives = rules.positives_of(grid, chosen)
    assert {of_rule.shape for of_rule in positives.values()} == {(1 + 2 * 3, len(grid.boxes))}
    counts = {name: of_rule[1:].sum(1).reshape(2, 3) for name, of_rule in positives.items()}
    centres = np.random.default_rng(0).uniform(64, 128, (3, 2))
    for side, of_nwd, of_iou in zip((6, 16), counts["nwd"], counts["max_iou"], strict=True):
        for (x, y), nwd, iou in zip(centres, of_nwd, of_iou, strict=True):
            box = np.array([x, y, x, y]) + 1.5 * side / 2 * np.array([-1, -1, 1, 1])
            near = [anchor for anchor in np.asarray(grid.boxes) if np.abs(anchor - box).max() < 30]
            for name, found, constants in (("nwd", nwd, {"constant": 1.5 * 12.7}), ("iou", iou, {})):
                values = np.array([plain.similarity(name, anchor, box, constants) for anchor in near])
                assert found == ((values >= 0.7) | (values > values.max() - 1e-6)).sum()
    assert (counts["rka"] == 2).all()


@pytest.mark.parametrize(
    ("name", "of_a_cell"), [("coarse_to_fine", 1), ("cascade", 1), ("guided_anchor", 1), ("rpn", 3)]
)
def test_the_grid_has_the_anchors_of_the_network(name, of_a_cell):
    network, assigners = parts(name)
    grid = rules.grid_of(network, 2, 1.5)
    assert len(grid.boxes) == of_a_cell * (48**2 + 24**2)
    rka = {"rka": rules.rules_of(network, assigners)["rka"]}
    assert (rules.positives_of(grid, rka)["rka"].sum(1) == 2).all()


def test_the_mode_writes_a_page_with_pictures(tmp_path):
    status, output, errors = tiny.call_main(
        f"--config={tiny.__file__}", f"--workdir={tmp_path / 'rules'}", "--mode=rules"
    )
    assert (status, errors) == (0, "")
    assert {path.name for path in (tmp_path / "rules").iterdir()} == {"rules.md", "rules.png", "similarities.png"}
    text = (tmp_path / "rules" / "rules.md").read_text()
    assert text in output
    for row in ("coarse paper", "coarse fixed", "max_iou", "nwd", "dotd", "rka", "rfla"):
        assert f"| {row} |" in text


def test_fall_is_the_similarity_over_the_shift():
    def measure(a, b):
        return jnp.exp(-jnp.abs(a[:, None, 0] + a[:, None, 2] - b[None, :, 0] - b[None, :, 2]) / 2)

    np.testing.assert_allclose(rules.fall(measure, 8.0, 1.5), np.exp(-rules.SHIFTS), rtol=1e-3)
