"""Markdown to one page of HTML that contains its pictures and needs no other file."""

import base64
import html
from typing import Any
from xml.etree.ElementTree import Element

import cv2
import markdown
import numpy as np
from etils import epath
from markdown.treeprocessors import Treeprocessor

JPEG_QUALITY = 85

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --text: #1b1f24; --ground: #ffffff; --soft: #59636e; --line: #d5dae0; --tint: #f4f6f8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e4e8ec; --ground: #14171a; --soft: #9aa4af; --line: #353b42; --tint: #1e2328; }}
}}
body {{ margin: 0 auto; padding: 1rem 1.2rem 3rem; max-width: 68rem; background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); font-size: 1.3rem; }}
table {{ display: block; overflow-x: auto; margin: 1rem 0; border-collapse: collapse;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 600; text-align: left; }}
img {{ display: block; max-width: 100%; height: auto; border-radius: 4px; }}
img[src^="data:image/png"] {{ width: 42rem; }}
@media (max-width: 40rem) {{ th, td {{ padding: .2rem .3rem; font-size: .8rem; }} }}
pre {{ overflow-x: auto; padding: .8rem; border-radius: 4px; background: var(--tint); font-size: .82rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def to_html(text: str, title: str, folder: epath.Path) -> str:
    """Return the page. Pictures are named relative to `folder` in the Markdown and embedded in the page."""
    converter = markdown.Markdown(extensions=["tables", "fenced_code"], output_format="html")
    converter.treeprocessors.register(_Embed(folder), "embed", 0)  # priority 0: last, when links have been resolved
    return PAGE.format(title=html.escape(title), body=converter.convert(text))


class _Embed(Treeprocessor):
    """Replace the name of every picture by its bytes."""

    def __init__(self, folder: epath.Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, root: Element) -> None:
        for image in root.iter("img"):
            image.set("src", data_uri(self.folder / image.attrib["src"]))


def data_uri(path: epath.Path) -> str:
    """Return a PNG file as a data URI. Photographs, which are those in `overlays`, become JPEG, a sixth of the size."""
    content, kind = path.read_bytes(), "png"
    if path.parent.name == "overlays":
        pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        content, kind = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
