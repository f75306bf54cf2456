"""The table of seeded faults fits the code; running all of them takes a quarter of an hour."""

import pytest

from tests.seeded_faults import FAULTS, ROOT, mirrored, with_fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_changes_its_function_and_has_a_test_file(fault):
    source = (ROOT / "cfinet_jax" / f"{fault.module}.py").read_text()
    changed = with_fault(source, fault)
    assert changed != source and compile(changed, fault.module, "exec")
    assert (ROOT / mirrored(fault.module)).exists() and len(FAULTS) == 30
