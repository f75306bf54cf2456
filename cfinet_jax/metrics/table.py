"""Scores as a table."""

from cfinet_jax.metrics.protocols import ANY_AREA, PROTOCOLS, Protocol
from cfinet_jax.tables import escape, percent, with_head

MIN_BOXES = 50  # of a size or class, for its numbers to mean something


def table(metrics: dict, min_boxes: int = MIN_BOXES) -> str:
    """The metrics that `metrics.score` returns, in percent.

    A size or class with fewer than `min_boxes` boxes says `n/a`; the headline always speaks.
    """
    protocol = PROTOCOLS[metrics["protocol"]]
    names = "AP", *protocol.marks
    headline = [percent(metrics[key]) for key in (*names, f"AR{protocol.limits[-1]}")]
    sizes = [[f"**{_range_name(protocol, protocol.headline)}**", *headline, metrics["boxes"][protocol.headline]]]
    for size in protocol.sizes:
        boxes = metrics["boxes"][size]
        known = {key: percent(metrics[f"{key}_{size}"], boxes, min_boxes) for key in ("AP", "AP50", "AR")}
        sizes.append([_range_name(protocol, size), *(known.get(key, "") for key in (*names, "AR")), boxes])
    per_class = []
    for name, values in metrics["per_class"].items():
        ap, ap50 = (percent(values[key], values["boxes"], min_boxes) for key in ("AP", "AP50"))
        per_class.append([escape(name), ap, ap50, values["boxes"]])
    of_classes = with_head([f"class ({protocol.headline})", "AP", "AP50", "boxes"], per_class)
    return f"{protocol}.\n\n{with_head(['size (area in px)', *names, 'AR', 'boxes'], sizes)}\n{of_classes}"


def _range_name(protocol: Protocol, size: str) -> str:
    low, high = protocol.ranges[size]
    if (low, high) == ANY_AREA:
        return size
    return f"{size} (> {low:g})" if high == ANY_AREA[1] else f"{size} ({low:g}-{high:g})"
