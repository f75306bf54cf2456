"""The table of seeded faults fits the code as it is; running them takes a quarter of an hour."""

from tests import seeded_faults


def test_every_fault_changes_exactly_one_place():
    seeded_faults.check_table()
    assert len(seeded_faults.FAULTS) == 30


def test_every_fault_has_a_test_file():
    assert all((seeded_faults.ROOT / seeded_faults.mirrored(fault[1])).exists() for fault in seeded_faults.FAULTS)
