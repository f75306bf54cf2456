"""SGD as in the released code, with schedules in images, so that the batch size can change."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Factor = Callable[[Any], Any]  # images seen -> factor on the base rate, after the warm-up


def by_steps(settings: Any, images: int) -> Factor:
    """Return the function that multiplies by `decay_factor` at each of `decay_images`."""

    def factor(seen: Any) -> Any:
        passed = sum((seen >= boundary).astype(jnp.float32) for boundary in settings.decay_images)
        return settings.decay_factor ** jnp.asarray(passed, jnp.float32)

    return factor


def by_cosine(settings: Any, images: int) -> Factor:
    """Return the function that falls along half a cosine from the end of the warm-up to `final_factor` at `images`."""
    fall = optax.cosine_decay_schedule(1.0, images - settings.warmup_images, settings.final_factor)
    return lambda seen: fall(jnp.maximum(seen - settings.warmup_images, 0.0))


SCHEDULES = {"steps": by_steps, "cosine": by_cosine}


def learning_rate(config: Any) -> Callable[[Any], Any]:
    """Return the function step -> learning rate: linear warm-up, then a schedule, all scaled by the batch size."""
    settings, batch_size = config.optimizer, config.dataset.batch_size
    base = settings.learning_rate * batch_size / settings.reference_batch
    factor = SCHEDULES[settings.schedule](settings, config.training.images)

    def rate(step: Any) -> Any:
        images = jnp.asarray(step, jnp.float32) * batch_size
        progress = jnp.minimum(images / settings.warmup_images, 1.0) if settings.warmup_images else 1.0
        warmup = 1 - (1 - progress) * (1 - settings.warmup_factor)
        return base * warmup * factor(images)

    return rate


def scale_by_part(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiply the updates of parameters whose path (`backbone/conv1/kernel`) starts with a key; the first that fits.

    Placed after weight decay and momentum, so that 0 freezes a parameter completely.
    """

    def scale(updates: Any, _: Any) -> Any:
        def scale_leaf(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return update * next((factor for part, factor in multipliers.items() if name.startswith(part)), 1)

        return jax.tree_util.tree_map_with_path(scale_leaf, updates)

    return optax.stateless(scale)


def make_optimizer(config: Any, frozen: tuple[str, ...]) -> optax.GradientTransformation:
    """Return SGD with momentum and weight decay as in PyTorch; `frozen` are path prefixes of fixed parameters."""
    settings = config.optimizer
    multipliers = dict.fromkeys(frozen, 0.0) | settings.rate_multipliers.to_dict()
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(
        clip,  # always part of the chain, so that a run may resume with or without clipping
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum),
        scale_by_part(multipliers),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
