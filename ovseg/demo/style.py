"""How the page looks: system fonts, nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from ovseg.demo.gradio_offline import gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1320px !important; margin: 0 auto !important; }
.head { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; padding: 2px 2px 0; }
.gradio-container { --body-text-color-subdued: var(--neutral-600);
  --block-info-text-color: var(--neutral-600); }
.gradio-container.dark, .dark .gradio-container { --body-text-color-subdued: var(--neutral-300);
  --block-info-text-color: var(--neutral-300); }
.head h1 { font-size: 26px; font-weight: 700; letter-spacing: -0.02em; margin: 0;
  color: var(--body-text-color); }
.head p { margin: 0; color: var(--body-text-color-subdued); font-size: 15px; }
.caption, .more { color: var(--body-text-color-subdued); font-size: 14px; margin: 2px 2px 6px; }
.status { font-size: 14px; margin: 4px 2px; color: var(--body-text-color-subdued); }
.status b { color: var(--body-text-color); }
.status .dot { margin: 0 7px; opacity: .6; }
.status.problem { color: #8f1d1d; background: #fdecec; border: 1px solid #f3c2c2; border-radius: 6px;
  padding: 8px 12px; overflow-wrap: anywhere; }
.dark .status.problem { color: #ffc9c9; background: #401c1c; border-color: #6b2b2b; }
.verdict { font-size: 15px; margin: 8px 2px; }
.result img, #slider img { object-fit: contain !important; width: 100% !important; height: 100% !important; }
.result button img, .result img { cursor: crosshair; }
ul.legend { list-style: none; margin: 8px 0 2px; padding: 0; display: grid; gap: 4px 26px;
  grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
ul.legend li, ul.bars li { display: flex; align-items: center; gap: 9px; font-size: 14px; margin: 0;
  padding: 0; }
ul.bars { list-style: none; margin: 6px 0; padding: 0; display: grid; gap: 6px; }
.legend .swatch { flex: none; width: 14px; height: 14px; border-radius: 4px; }
.bars .name { flex: 0 1 118px; }
.legend .name { flex: 3 1 118px; }
.legend .name, .bars .name { min-width: 84px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; color: var(--body-text-color); }
.track { flex: 1 1 50px; min-width: 40px; height: 7px; border-radius: 4px; overflow: hidden;
  background: var(--neutral-200); }
.dark .track { background: var(--neutral-700); }
.track span { display: block; height: 100%; background: var(--color-accent); }
.legend .value, .bars .value { flex: none; min-width: 46px; text-align: right;
  font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.bars .cosine { flex: none; min-width: 52px; text-align: right; font-variant-numeric: tabular-nums;
  font-size: 12px; color: var(--body-text-color-subdued); }
#examples .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; gap: 6px;
  grid-template-rows: none !important; grid-auto-rows: auto !important; height: auto !important;
  padding-top: 26px; }
#examples .thumbnail-item { aspect-ratio: 4 / 3 !important; height: auto !important; }
#alike .caption-label { max-width: 100% !important; font-size: 12px; }
.tabitem { padding-top: 6px !important; }
#examples .caption-label { display: none; }
"""


def theme() -> Any:
    """Quiet colours and the fonts of the reader's own system."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=list(SANS),
        font_mono=list(MONO),
        spacing_size="sm",
        radius_size="md",
    )
