"""The page of HTML contains its pictures and needs nothing else."""

import base64

import cv2
import numpy as np
import pytest
from etils import epath

from cfinet_jax.report.page import to_html
from tests import html_page


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    """A folder with a plot and a photograph."""
    (tmp_path / "overlays").mkdir()
    shades = np.indices((40, 60)).sum(axis=0).astype(np.uint8)
    for name in ("plot.png", "overlays/best.png"):
        cv2.imwrite(str(tmp_path / name), np.stack([shades, 2 * shades, 200 - shades], axis=-1))
    return epath.Path(tmp_path)


def sources(page: str) -> list[str]:
    return [attributes["src"] for tag, attributes in html_page.parse(page).attributes if tag == "img"]


def test_pictures_are_embedded_and_nothing_is_fetched_or_run(folder):
    page = to_html("# Head\n\n![a plot](plot.png)\n\n![best](overlays/best.png)", "title", folder)
    plot, picture = sources(page)
    assert base64.b64decode(plot.removeprefix("data:image/png;base64,")) == (folder / "plot.png").read_bytes()
    jpeg = base64.b64decode(picture.removeprefix("data:image/jpeg;base64,"))
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - cv2.imread(str(folder / "overlays" / "best.png"))).max() < 10
    assert not any(word in page for word in ("http", "<script", "url(", "<link"))


def test_title_tables_and_code_are_text(folder):
    page = to_html("# Head\n\n| a |\n|--:|\n| 1 |\n\n```text\nkey = <b>\n```", "<i>&", folder)
    texts = html_page.parse(page).texts
    assert texts["title"] == ["<i>&"] and texts["h1"] == ["Head"] and texts["td"] == ["1"]
    assert texts["code"] == ["key = <b>\n"] and "i" not in texts and "b" not in texts
