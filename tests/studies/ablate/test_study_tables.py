"""Tables of a study: ours and the paper's."""

from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.studies.ablate import study_tables
from cfinet_jax.studies.ablate.intervals import Difference, keys_of
from cfinet_jax.studies.ablate.study import Row, Study

RULES = PROTOCOLS["soda_d"]
STUDY = Study("Mine", (Row("base", {}, {"AP": 28.9, "AP_eS": 13.8}), Row("ours", {}, {"AP": 30.7, "AP_eS": 14.7})))
BOXES = {"Small": 900, "eS": 49, "rS": 50, "gS": 801, "N": 0}


def metrics(ap: float) -> dict:
    return {"boxes": BOXES, **{column.key: ap for column in study_tables.score_columns(RULES)}, "AP_N": None}


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]


def test_scores_of_the_paper_follow_ours_where_they_are_given():
    scores = {"base": [metrics(0.2), metrics(0.3)], "ours": [metrics(0.4)]}
    columns = study_tables.score_columns(RULES)
    head, _, base, *others = lines(study_tables.score_table(scores, columns, "Small"))
    assert len(others) == 1
    of_base = dict(zip(head, base, strict=True))
    assert of_base["AP"] == "25.0 ± 7.1" and of_base["AP, rS"] == "25.0 ± 7.1"
    assert of_base["AP, eS"] == of_base["AP, N"] == "n/a"  # too few boxes
    _, _, _, paper, _, of_ours = lines(study_tables.score_table(scores, columns, "Small", STUDY.rows))
    assert paper[:3] == ["of the paper", "", "28.9"] and of_ours[head.index("AP, eS")] == "14.7"


def test_clear_differences_are_bold_and_claimed():
    clear, unclear = Difference(0.021, 0.004, 0.04, 3), Difference(0.01, -0.01, 0.03, 3)
    of_one_seed = Difference(-0.02, -0.03, -0.01, 1)
    keys = keys_of("AP", RULES)
    found = {"ours": {"AP": clear, "AP_eS": None, "AP_rS": unclear, "AP_gS": of_one_seed, "AP_N": None}}
    head, _, ours, context = lines(study_tables.difference_table(found, STUDY, keys, same_data=False))
    assert head == ["against base", "Small", "eS", "rS", "gS", "N"]
    assert ours[:4] == ["ours", "**+2.1** [+0.4, +4.0]", "n/a", "+1.0 [-1.0, +3.0]"]
    assert ours[4:] == ["**-2.0** [-3.0, -1.0], images only", "n/a"]
    assert "context" in context[0] and context[1:3] == ["+1.8", "+0.9"]
    same = lines(study_tables.difference_table(found, STUDY, keys, same_data=True))[-1]
    assert same[:3] == ["the paper's difference", "+1.8", "+0.9"]
    text = study_tables.claims(found, STUDY, keys)
    assert "ours: AP (Small) is higher by 2.1 points (+0.4 to +4.0)." in text
    assert "ours: AP (gS) is lower by 2.0 points (-3.0 to -1.0, images only)." in text
    assert "(eS)" not in text and "(rS)" not in text
    nothing = {"ours": dict.fromkeys(found["ours"], unclear)}
    assert "No difference from base can be claimed for: ours." in study_tables.claims(nothing, STUDY, keys)
