"""Draws without replacement: counts, disjointness, uniformity, and a plain statement of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops.sampling import choose, sample_balanced

COUNT = 30
seeds = st.integers(0, 2**32 - 1)


def highest(priorities: np.ndarray, candidates: np.ndarray, quota: int) -> list[int]:
    """The candidates of highest priority, in index order."""
    places = [k for k in range(len(priorities)) if candidates[k]]
    return sorted(sorted(places, key=lambda k: -priorities[k])[:quota])


@jax.jit
def balanced(priorities, positive, negative):
    return sample_balanced(priorities, positive, negative, size=12, positive_fraction=0.25)


@given(seeds, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from([0.0, 0.1, 0.5]))
def test_balanced_sample_equals_the_loop(seed, positives, negatives):
    rng = np.random.default_rng(seed)
    priorities = rng.random(COUNT).astype(np.float32)
    positive = rng.random(COUNT) < positives
    negative = (rng.random(COUNT) < negatives) & ~positive
    priorities[np.flatnonzero(positive)[:1]] = 0  # the lowest there is
    sample = jax.tree.map(np.asarray, balanced(priorities, positive, negative))
    expected = highest(priorities, positive, 3)
    background = highest(priorities, negative, 12 - len(expected))
    assert sample.indices[sample.positive].tolist() == expected
    assert sample.indices[sample.valid].tolist() == expected + background
    assert not (sample.positive & ~sample.valid).any()
    assert len(sample.indices) == 12


def test_more_slots_than_candidates_leave_invalid_slots():
    priorities = jnp.linspace(0, 0.5, 4)
    positive = jnp.array([False, True, False, False])
    sample = sample_balanced(priorities, positive, ~positive, size=10, positive_fraction=0.5)
    assert sample.indices.shape == (10,)
    assert sample.indices[sample.valid].tolist() == [1, 0, 2, 3]
    assert sample.positive.tolist() == [True] + [False] * 9


@given(seeds)
def test_choose_takes_the_quota_of_every_row(seed):
    rng = np.random.default_rng(seed)
    priorities, candidate = rng.random((5, COUNT)).astype(np.float32), rng.random((5, COUNT)) < 0.4
    quota = rng.integers(0, 9, 5)
    chosen = np.asarray(jax.jit(choose, static_argnums=3)(priorities, candidate, quota, 8))
    for row in range(5):
        assert np.flatnonzero(chosen[row]).tolist() == highest(priorities[row], candidate[row], quota[row])


def test_the_lowest_priority_of_all_can_be_drawn():
    chosen = choose(jnp.array([0.0, 0.7]), jnp.array([True, False]), jnp.array(1), 2)
    assert chosen.tolist() == [True, False]


@pytest.mark.parametrize("part", ["positive", "negative"])
def test_every_candidate_is_drawn_equally_often(part):
    positive = jnp.arange(COUNT) < 10
    keys = jax.random.split(jax.random.key(0), 2000)

    def indicators(key):
        sample = balanced(jax.random.uniform(key, (COUNT,)), positive, ~positive)
        chosen = sample.positive if part == "positive" else sample.valid & ~sample.positive
        return jnp.zeros(COUNT).at[sample.indices].add(chosen)

    share = np.asarray(jax.vmap(indicators)(keys).mean(0))
    expected = np.where(positive, 3 / 10, 0) if part == "positive" else np.where(positive, 0, 9 / 20)
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / 2000))
