"""Tables show every size and class, and `n/a` for those with too few objects."""

import pytest

from cfinet_jax.metrics.proposal_scores import OBJECT, summarise, tally_proposals
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.metrics.results import columns
from cfinet_jax.metrics.score import score
from cfinet_jax.metrics.score_table import proposal_table, table

CLASSES = {3: "car", 7: "person"}


def scored(protocol: str) -> dict:
    """Score 60 found cars of 8 x 8 pixels and 2 missed persons of 20 x 20."""
    places = [(3, [12 * i, 0, 8, 8]) for i in range(60)] + [(7, [30 * i, 50, 20, 20]) for i in range(2)]
    annotations = [{"id": i, "image_id": 1, "category_id": c, "bbox": box} for i, (c, box) in enumerate(places)]
    categories = [{"id": key, "name": name} for key, name in CLASSES.items()]
    ground_truth = {"images": [{"id": 1}], "annotations": annotations, "categories": categories}
    detections = [{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.5} for c, box in places if c == 3]
    rules = PROTOCOLS[protocol]
    metrics = score(ground_truth, detections, rules)
    proposals = columns([entry | {"category_id": OBJECT} for entry in 2 * detections])
    return metrics | {"proposals": summarise(tally_proposals(ground_truth, proposals, rules), rules)}


def test_table_of_soda():
    rows = table(scored("soda_d")).splitlines()
    assert rows[0].startswith("soda_d: AP at IoU")
    assert "| **Small (0-1024)** | 50.0 | 50.0 | 50.0 | 50.0 | 62 |" in rows
    assert "| eS (0-144) | 100.0 | 100.0 |  | 100.0 | 60 |" in rows
    assert "| rS (144-400) | n/a | n/a |  | n/a | 2 |" in rows  # too few
    assert "| N (1024-2000) | n/a | n/a |  | n/a | 0 |" in rows  # none
    assert "| car | 100.0 | 100.0 | 60 |" in rows and "| person | n/a | n/a | 2 |" in rows


def test_table_of_coco_and_its_threshold():
    rows = table(scored("coco"), min_boxes=1).splitlines()
    assert [row.split("|")[1].strip() for row in rows if row.startswith("| **")] == ["**all**"]
    assert "| L (> 9216) | n/a | n/a |  | n/a | 0 |" in rows
    assert "| person | 0.0 | 0.0 | 2 |" in rows


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_its_table(name):
    text = table(scored(name), min_boxes=1)
    head = next(line for line in text.splitlines() if line.startswith("| size")).split(" | ")
    assert head[1:] == ["AP", *PROTOCOLS[name].marks, "AR", "boxes |"]
    assert all(f"\n| {size}" in text for size in PROTOCOLS[name].sizes)


def test_table_of_proposals():
    head, _, *rows = proposal_table(scored("soda_d")).splitlines()
    assert head == "| size (area in px) | AR100 | AR300 | AR1000 | proposals per object, IoU > 0.5 | boxes |"
    assert rows[:2] == [
        "| **Small (0-1024)** | 96.8 | 96.8 | 96.8 | 1.94 | 62 |",
        "| eS (0-144) | 100.0 | 100.0 | 100.0 | 2.00 | 60 |",
    ]
    assert "| rS (144-400) | n/a | n/a | n/a | n/a | 2 |" in rows  # too few
    assert "| N (1024-2000) | n/a | n/a | n/a | n/a | 0 |" in rows  # none
    assert "| rS (144-400) | 0.0 | 0.0 | 0.0 | 0.00 | 2 |" in proposal_table(scored("soda_d"), min_boxes=1)
