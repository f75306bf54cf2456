"""Objects as columns of the record in `cfinet_jax/input/records.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfinet_jax.input.records import COLUMNS, NUMBERS


def columns(objects: Mapping[str, Any], boxes: str = "horizontal") -> dict[str, np.ndarray]:
    """The columns of objects, also where there is none."""
    described = COLUMNS[boxes].items()
    return {key: np.array(objects[key], dtype).reshape(-1, *NUMBERS.get(key, ())) for key, dtype in described}
