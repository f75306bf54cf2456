"""A whole experiment on the tiny SODA-A of `tests.sodaa`: `--config=tests/tiny_oriented.py`."""

from ml_collections import ConfigDict

from configs import sodaa
from tests import tiny


def get_config(variant: str = "") -> ConfigDict:
    """Return the experiment of `configs/sodaa.py`, reduced: two steps of eight windows, then an evaluation."""
    config = sodaa.get_config(variant)
    tiny.shrink(config.detector)
    config.detector.backbone.update(frozen_stages=-1, last_norm_scale=0.3)
    config.dataset.update(image_size=tiny.SHAPE, max_objects=8, batch_size=8, eval_batch_size=8, read_threads=1)
    config.training.update(images=16, log_every_images=8, checkpoint_every_images=8)
    config.evaluation.update(every_images=16, overlays=1)
    return config.lock()
