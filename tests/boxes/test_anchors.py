"""The anchor grid against the reference's and against a plain loop."""

import numpy as np

from cfinet_jax.boxes.anchors import anchor_grid


def test_grid_agrees_with_the_reference(golden):
    data = golden("anchors")
    for case in range(int(data["n_cases"])):
        for level, stride in enumerate((4, 8, 16, 32)):
            rows, columns = data[f"c{case}_size_l{level}"]
            ours = anchor_grid((int(rows), int(columns)), stride, 2.0, (1.0,))
            np.testing.assert_array_equal(ours, data[f"c{case}_anchors_l{level}"])


def test_grid_equals_the_loop():
    stride, scale, ratios = 8, 3.0, (0.5, 1.0, 2.0)
    expected = []
    for i in range(3):
        for j in range(5):
            for ratio in ratios:
                width = scale * stride / ratio**0.5
                height = width * ratio
                x, y = j * stride, i * stride
                expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    np.testing.assert_allclose(anchor_grid((3, 5), stride, scale, ratios), expected, rtol=1e-6, atol=1e-5)


def test_ratio_is_height_over_width_and_area_is_kept():
    for ratio in (0.5, 1.0, 2.0):
        (x1, y1, x2, y2) = anchor_grid((1, 1), 16, 2.0, (ratio,))[0]
        np.testing.assert_allclose((y2 - y1) / (x2 - x1), ratio, rtol=1e-5)
        np.testing.assert_allclose((y2 - y1) * (x2 - x1), 32.0**2, rtol=1e-5)
