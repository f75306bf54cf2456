"""The ring buffer against `collections.deque`, the choice of exemplars against a loop."""

import dataclasses
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.ops.exemplar_memory import choose, empty_memory, filled, push
from cfinet_jax.structures import ExemplarMemory, Exemplars

CLASSES, SLOTS, OFFERED = 3, 4, 7
push_jitted = jax.jit(push)


def offer(numbers: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> Exemplars:
    """Exemplars whose features are a number each."""
    features = jnp.broadcast_to(jnp.asarray(numbers, jnp.float32)[:, None, None, None], (OFFERED, 1, 1, 2))
    return Exemplars(features, jnp.asarray(labels, jnp.int32), jnp.ones(OFFERED), jnp.asarray(valid))


def contents(memory) -> list[list[float]]:
    """Numbers per class, oldest first."""
    held = []
    for label in range(CLASSES):
        size, cursor = int(memory.size[label]), int(memory.cursor[label])
        slots = [(cursor - size + k) % SLOTS for k in range(size)]
        held.append([float(memory.features[label, slot, 0, 0, 0]) for slot in slots])
    return held


@given(st.integers(0, 2**32 - 1))
def test_pushes_behave_as_a_bounded_deque_per_class(seed):
    rng = np.random.default_rng(seed)
    memory = empty_memory(CLASSES, SLOTS, 1, 2)
    queues = [deque(maxlen=SLOTS) for _ in range(CLASSES)]
    for step in range(5):
        numbers = step * OFFERED + np.arange(OFFERED) + 1
        labels = rng.integers(0, CLASSES, OFFERED) if step != 2 else np.full(OFFERED, 1)  # more than fit
        valid = rng.random(OFFERED) < (0.7 if step != 2 else 1.1)
        memory = push_jitted(memory, offer(numbers, labels, valid))
        for number, label, real in zip(numbers, labels, valid, strict=True):
            if real:
                queues[label].append(float(number))
        assert contents(memory) == [list(queue) for queue in queues]
        np.testing.assert_array_equal(filled(memory).sum(1), [len(queue) for queue in queues])


def test_a_push_of_nothing_changes_nothing():
    memory = push_jitted(empty_memory(CLASSES, SLOTS, 1, 2), offer(np.arange(7), np.arange(7) % 3, np.ones(7, bool)))
    after = push_jitted(memory, offer(np.arange(7) + 50, np.arange(7) % 3, np.zeros(7, bool)))
    jax.tree.map(np.testing.assert_array_equal, after, memory)


def test_features_are_kept_in_float32():
    exemplars = offer(np.arange(7), np.zeros(7), np.ones(7, bool))
    rough = dataclasses.replace(exemplars, features=exemplars.features.astype(jnp.bfloat16))
    assert push(empty_memory(CLASSES, SLOTS, 1, 2), rough).features.dtype == jnp.float32


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_the_best_of_every_class_are_chosen(seed, most):
    rng = np.random.default_rng(seed)
    labels, valid = rng.integers(0, CLASSES, OFFERED), rng.random(OFFERED) < 0.8
    quality = rng.integers(0, 3, OFFERED).astype(np.float32)  # with ties
    indices, chosen = choose(jnp.asarray(labels), jnp.asarray(quality), jnp.asarray(valid), CLASSES, most)
    assert indices.shape == chosen.shape == (CLASSES, min(most, OFFERED))
    for label in range(CLASSES):
        offered = [i for i in range(OFFERED) if valid[i] and labels[i] == label]
        best = sorted(offered, key=lambda i: -quality[i])[:most]  # Python's sort keeps the first of equals first
        assert indices[label][chosen[label]].tolist() == sorted(best)


def test_a_memory_has_the_parts_that_checkpoints_of_earlier_versions_have():
    """A further one, even None, would be part of the tree that Orbax compares: no run could be resumed."""
    assert [field.name for field in dataclasses.fields(ExemplarMemory)] == ["features", "cursor", "size"]
