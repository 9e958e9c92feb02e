"""The page and the card of a delivered model, drawn from its report alone."""

from __future__ import annotations

from sarto.pipeline.page.card import render_card
from sarto.pipeline.page.html import render_page

__all__ = ["render_card", "render_page"]
