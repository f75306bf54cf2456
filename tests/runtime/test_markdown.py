"""Untrusted text has no effect on Markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfinet_jax.runtime.markdown import escape, with_head
from tests import html_page


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_escaped_text_is_shown_unchanged(text):
    shown = " ".join(text.split())
    assert html_page.read(f"| head |\n| --- |\n| {escape(text)} |")["td"] == [shown]
    assert html_page.read(f"Said: {escape(text)}.")["p"] == [f"Said: {shown}."]


@pytest.mark.parametrize(
    "text",
    ["https://evil.example/x", "www.evil.example", "me@evil.example", "[car](javascript:x)", "<script>x</script>",
     "![x](http://e/p.png)", "<https://e>", "ftp://e/x", "| a | b |", "`code`", "# car", "a\nb"],
)  # fmt: skip
def test_names_become_neither_links_nor_scripts(text):
    escaped = escape(text)
    assert "<" not in escaped and "://" not in escaped and "www." not in escaped and "@" not in escaped
    assert "](" not in escaped.replace("\\](", "") and "\n" not in escaped
    assert html_page.read(f"Said: {escaped}.")["p"] == [f"Said: {' '.join(text.split())}."]


def test_words_with_underscores_stay_readable():
    assert escape("traffic_light") == "traffic_light" and escape("_a_ b") == "\\_a\\_ b"


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_table_has_names_on_the_left_and_numbers_on_the_right(columns):
    head = ["name", "AP", "AP50", "AP75"][:columns]
    assert with_head(head, []).splitlines()[1] == "| " + " | ".join(["---", "--:", "--:", "--:"][:columns]) + " |"
