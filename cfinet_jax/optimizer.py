"""SGD as the original runs it, its schedule counted in images so that the batch size can change."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def learning_rate(settings: Any, batch_size: int) -> Callable[[Any], Any]:
    """The rate at a step: linear warm-up, then steps down; proportional to the batch size."""
    base = settings.learning_rate * batch_size / settings.reference_batch

    def rate(step: Any) -> Any:
        images = jnp.asarray(step, jnp.float32) * batch_size
        progress = jnp.minimum(images / settings.warmup_images, 1.0) if settings.warmup_images else 1.0
        warmup = 1 - (1 - progress) * (1 - settings.warmup_factor)
        passed = sum((images >= boundary).astype(jnp.float32) for boundary in settings.decay_images)
        return base * warmup * settings.decay_factor ** jnp.asarray(passed, jnp.float32)

    return rate


def path_of(path: tuple[Any, ...]) -> str:
    """`backbone/conv1/kernel`."""
    return "/".join(entry.key for entry in path)


def scale_by_part(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of parameters whose path starts with a key; 0 freezes them, decay included."""

    def scale(updates: Any, params: Any) -> Any:
        def of_leaf(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            factors = [factor for part, factor in multipliers.items() if path_of(path).startswith(part)]
            return update * factors[0] if factors else update

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return optax.stateless(scale)


def make_optimizer(settings: Any, batch_size: int, frozen: tuple[str, ...]) -> optax.GradientTransformation:
    """SGD with momentum and weight decay in torch's form; `frozen` are prefixes of parameters that never move."""
    multipliers = dict.fromkeys(frozen, 0.0) | settings.rate_multipliers.to_dict()
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(
        clip,  # always a link of the chain, so that an interrupted run may go on with or without it
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum),
        scale_by_part(multipliers),
        optax.scale_by_learning_rate(learning_rate(settings, batch_size)),
    )
