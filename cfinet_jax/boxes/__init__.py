"""Geometry of boxes: arrays in, arrays out."""

import math

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # decoding lets a side grow or shrink at most 62.5 times
