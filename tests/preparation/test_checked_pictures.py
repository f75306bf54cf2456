"""Work in threads keeps its order and leaves no thread behind."""

import threading
import time

import pytest

from cfinet_jax.preparation.checked_pictures import map_images


def test_results_come_in_order():
    assert list(map_images(lambda number: (time.sleep(0.02 / (1 + number)), number)[1], range(9), "Counting")) == [
        *range(9)
    ]


def test_waiting_work_is_dropped_when_one_piece_fails():
    before, begun = threading.active_count(), []

    def fail_at_the_third(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)
        if number == 2:
            raise ValueError

    with pytest.raises(ValueError):
        list(map_images(fail_at_the_third, range(1000), "Counting"))
    assert len(begun) < 500
    assert threading.active_count() == before
