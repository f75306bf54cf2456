"""Format metrics as tables in Markdown."""

from cfinet_jax.metrics.proposal_scores import LIMITS, NEAR, endings
from cfinet_jax.metrics.protocols import ANY_AREA, PROTOCOLS, Protocol
from cfinet_jax.runtime.markdown import escape, percent, with_head

MIN_BOXES = 50  # a size or class with fewer objects has no reliable score


def table(metrics: dict, min_boxes: int = MIN_BOXES) -> str:
    """Format the metrics that `metrics.score` returns, in percent.

    A size or class with fewer than `min_boxes` boxes shows `n/a`; the headline is always shown.
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


def proposal_table(metrics: dict, min_boxes: int = MIN_BOXES) -> str:
    """Format the scores of proposals in the metrics of `evaluate`: recall in percent, and numbers of proposals."""
    protocol, scores = PROTOCOLS[metrics["protocol"]], metrics["proposals"]
    rows = []
    for size, ending in endings(protocol).items():
        boxes, number = metrics["boxes"][size], scores[f"per_object{ending}"]
        name, least = _range_name(protocol, size), min_boxes if ending else 0
        recalls = [percent(scores[f"AR{limit}{ending}"], boxes, least) for limit in LIMITS]
        known = number is not None and boxes >= least
        rows.append([name if ending else f"**{name}**", *recalls, f"{number:.2f}" if known else "n/a", boxes])
    head = ["size (area in px)", *(f"AR{limit}" for limit in LIMITS), f"proposals per object, IoU > {NEAR:g}", "boxes"]
    return with_head(head, rows)


def _range_name(protocol: Protocol, size: str) -> str:
    low, high = protocol.ranges[size]
    if (low, high) == ANY_AREA:
        return size
    return f"{size} (> {low:g})" if high == ANY_AREA[1] else f"{size} ({low:g}-{high:g})"
