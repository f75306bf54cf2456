"""The paper's studies: every row can be set, traces, and has the score that the paper gives for it."""

import jax
import pytest
from ml_collections import ConfigDict

from cfinet_jax.build import build
from cfinet_jax.errors import UserError
from cfinet_jax.evaluate import make_detect
from cfinet_jax.runtime import mesh
from cfinet_jax.runtime.settings import ADDED, flatten, identity
from cfinet_jax.studies.ablate.study import OF_NO_EFFECT, Row, check_rows, config_of, digest, load_study
from cfinet_jax.studies.compile import shipped_shapes, step_shapes
from cfinet_jax.training import make_step
from configs import ablations, coco, scenes, sodaa, sodad
from tests import tiny, tiny_oriented

BASE = tiny.tiny_config()
ORIENTED = tiny_oriented.get_config()
STUDIES = ablations.get_studies(BASE)


def program(config: ConfigDict) -> str:
    """A name of what is traced: experiments that differ by fractions alone run the same code."""
    return str({key: float if isinstance(each, float) else each for key, each in flatten(config.to_dict()).items()})


TRAINED = {
    program(config): pytest.param(config, id=row.name)
    for study in STUDIES.values()
    if study.measure != "anchors"
    for row in study.rows
    for config in [config_of(row, ORIENTED if study.boxes == "oriented" else BASE)]
}


@pytest.mark.parametrize("config", TRAINED.values())
def test_steps_and_detections_of_the_paper_s_experiments_trace(config):
    over = mesh.make_mesh()
    config.optimizer.warmup_images = 0  # the trainings of tests are shorter than the warm-up
    detector, sgd = build(config, 6)
    arguments = state, _, _ = step_shapes(config, detector, over)
    after, metrics = jax.eval_shape(make_step(config, detector, sgd, over), *arguments)
    assert jax.tree.structure(after) == jax.tree.structure(state) and {"loss", "finite"} <= metrics.keys()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    detect = make_detect(detector, config, over)
    found, _ = jax.eval_shape(detect, variables, shipped_shapes(config.dataset, "eval_batch_size", over))
    most = config.detector.roi_head.max_detections
    numbers = 5 if config.dataset.boxes == "oriented" else 4
    assert found.boxes.shape == (config.dataset.eval_batch_size, most, numbers)


def test_all_tables_are_there():
    assert {*(f"table{number}" for number in range(1, 10)), "figure1", "figure4"} <= STUDIES.keys()


def test_runs_of_earlier_versions_are_found_while_what_came_since_is_off():
    before = tiny.tiny_config()
    with before.unlocked():
        tiny.forget(before, ADDED)
    on = tiny.tiny_config()
    on.training.average_decay = 0.9
    assert digest(before) == digest(BASE) != digest(on)


def test_rows_of_several_tables_are_trained_once():
    shared = [digest(config_of(row, BASE)) for name in ("table7", "table8", "table9") for row in STUDIES[name].rows]
    assert len(shared) == 11 and len(set(shared)) == 9
    crpn = [digest(config_of(STUDIES[name].rows[place], BASE)) for name, place in (("table5", 1), ("table6", 0))]
    assert crpn[0] == crpn[1]


@pytest.mark.parametrize("base", [BASE, sodad.get_config()], ids=["tiny", "sodad"])
def test_table5_changes_only_the_proposal_network_and_imitation(base):
    study = ablations.get_studies(base)["table5"]
    whole = flatten(base.to_dict())
    for row in study.rows:
        config = config_of(row, base)
        changed = {key for key, value in flatten(config.to_dict()).items() if value != whole[key]}
        allowed = ("detector.proposal_network.name", "detector.proposal_network.rpn.", "detector.imitation.enabled")
        assert all(key.startswith(allowed) for key in changed), changed
        network = config.detector.proposal_network
        proposals = network[network.name].proposals.to_dict()
        assert proposals == base.detector.proposal_network.coarse_to_fine.proposals.to_dict()
        assert network[network.name].samples == base.detector.proposal_network.coarse_to_fine.samples


@pytest.mark.parametrize(
    ("study", "differences"),
    [
        ("table1", {"AP": (0.2, 0.6, -1.4)}),
        ("table2", {"AP": (0.2, 0.8, 1.8), "AP_eS": (-1.3, -0.6, 0.9)}),
        ("table3", {"AP": (1.9, 1.9), "AP_eS": (0.6, 1.6)}),
        ("table4", {"proposals/AR300": (0.1, 0.9, 0.6, 1.4)}),
        ("table5", {"AP": (1.4, 0.6, 1.8)}),
        ("table6", {"AP": (-0.4, -0.2)}),
        ("table7", {"AP": (-0.1, -0.3)}),
        ("table8", {"AP": (-0.4, -0.1, -0.2)}),
        ("table9", {"AP": (-0.4, -0.3, -0.5)}),
    ],
)
def test_the_differences_of_the_paper(study, differences):
    base, *rows = (row.published for row in STUDIES[study].rows if row.published)
    for key, expected in differences.items():
        assert [row[key] - base[key] for row in rows] == pytest.approx(expected)


def test_the_first_row_of_a_key_s_study_is_the_experiment_itself():
    for name in ("table7", "table8", "table9", "choices"):
        assert digest(config_of(STUDIES[name].rows[0], sodad.get_config())) == digest(sodad.get_config())
    assert digest(config_of(STUDIES["choices"].rows[-2], sodad.get_config())) == digest(sodad.get_config("released"))


@pytest.mark.parametrize("key", OF_NO_EFFECT)
def test_a_setting_without_effect_changes_no_experiment(key):
    other, value = BASE.copy_and_resolve_references(), flatten(BASE.to_dict())[key]
    other.update_from_flattened_dict({key: "skip" if isinstance(value, str) else value + 1})
    assert digest(other) == digest(BASE)
    if key != "seed":  # and may change when a run resumes
        assert identity(other.to_dict()) == identity(BASE.to_dict())


@pytest.mark.parametrize("key", ["detector.imitation.weight", "training.images", "evaluation.every_images"])
def test_a_setting_with_an_effect_changes_the_experiment(key):
    assert digest(config_of(Row("twice", {key: flatten(BASE.to_dict())[key] * 2}), BASE)) != digest(BASE)


@pytest.mark.parametrize("changes", [{"detector.imitation.wieght": 1.0}, {"detector.imitation.weight": "much"}])
def test_a_row_that_cannot_be_set_is_named(changes):
    with pytest.raises(UserError, match="The row 'mine' of the study cannot be set"):
        config_of(Row("mine", changes), BASE)


@pytest.mark.parametrize(
    ("study", "data", "split", "same"),
    [
        ("table2", "sodad", "test", True),
        ("table2", "sodad", "val", False),
        ("table2", "sodaa", "test", False),
        ("table3", "sodaa", "test", True),
        ("table3", "sodad", "test", False),
        ("table5", "scenes", "test", False),
    ],
)
def test_the_paper_s_scores_are_compared_on_the_same_data_only(study, data, split, same):
    settings = BASE.dataset.copy_and_resolve_references()
    settings.update(name=data, eval_split=split)
    assert STUDIES[study].has_data_of_paper(settings) == same


def test_a_study_of_oriented_boxes_needs_an_experiment_with_them():
    with pytest.raises(UserError, match="table3 needs oriented boxes.*--config=configs/sodaa.py"):
        load_study("table3", BASE)
    assert len(load_study("table3", ORIENTED).rows) == 3
    assert load_study("table5", ORIENTED).boxes is None


@pytest.mark.parametrize(
    "config",
    [sodad.get_config(), scenes.get_config(), coco.get_config("small"), sodaa.get_config()],
    ids=["sodad", "scenes", "coco:small", "sodaa"],
)
def test_no_two_rows_of_the_paper_s_studies_are_the_same_experiment(config):
    for name, study in ablations.get_studies(config).items():
        if study.boxes in (None, config.dataset.boxes):
            check_rows(study, name, config)


FILES = {
    "torn.py": "def get_studies(config):\n    return {",
    "endless.py": "def get_studies(config):\n    return get_studies(config)\n",
    "deep.py": "import json\n\ndef get_studies(config):\n    return json.loads('[' * 100_000)\n",
    "unknown.py": "import absent_module\n",
    "other.py": "def get_studies():\n    return {}\n",
    "none.py": "get_studies = None\n",
    "studies.txt": "",
    "nothing.py": "",
    "rows.py": """
from cfinet_jax.studies.ablate.study import Row, Study

def get_studies(config):
    weight = {"detector.imitation.weight": config.detector.imitation.weight}
    return {
        "twins": Study("Twins", (Row("a", {}), Row("a", {"detector.imitation.weight": 0.1}))),
        "same": Study("Same", (Row("a", {}), Row("b", weight))),
        "seeded": Study("Seeded", (Row("a", {}), Row("b", {"seed": 3}))),
    }
""",
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table55", "has no study 'table55'"),
        ("nowhere.py:x", "nowhere.py, which does not exist"),
        ("studies.txt:x", "studies.txt, which does not end in .py"),
        ("nothing.py:x", "get_studies.config. of .*nothing.py is missing or failed"),
        ("torn.py:x", "SyntaxError"),
        ("endless.py:x", "RecursionError"),
        ("deep.py:x", "RecursionError|MemoryError|SyntaxError"),
        ("unknown.py:x", "ModuleNotFoundError: No module named 'absent_module'"),
        ("other.py:x", "TypeError"),
        ("none.py:x", "get_studies.config. of .*none.py is missing or failed"),
        ("rows.py:twins", "twins has two rows 'a': rename"),
        ("rows.py:same", "The rows 'a' and 'b' of same are the same experiment"),
        ("rows.py:seeded", "The row 'b' of seeded sets seed: leave it out"),
    ],
)
def test_mistakes_in_a_file_of_studies(tmp_path, name, message):
    for file, text in FILES.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_study(f"{tmp_path}/{name}" if ":" in name else name, BASE)
    assert "\n" not in str(error.value)


def test_rows_that_equal_the_experiment_are_refused():
    with pytest.raises(UserError, match="The rows 'paper' and .* of choices are the same experiment"):
        load_study("choices", sodad.get_config("released"))


@pytest.mark.parametrize(
    ("config", "samples"),
    [(sodad.get_config(), 512), (scenes.get_config(), 128), (coco.get_config("cpu"), 256), (sodaa.get_config(), 512)],
    ids=["sodad", "scenes", "coco:cpu", "sodaa"],
)
def test_the_baseline_has_twice_the_samples_but_at_most_512(config, samples):
    studies = ablations.get_studies(config)
    for name in ("table1", "table2", "table4", "table5_as_published", "figure4", "assigners"):
        assert config_of(studies[name].rows[0], config).detector.roi_head.samples == samples
    smaller = config_of(studies["choices"].rows[-1], config).detector.imitation.slots
    assert 4 * smaller == config.detector.imitation.slots
