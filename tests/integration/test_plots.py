"""The page of `dvc plots show` where its scripts cannot be loaded."""

from pathlib import Path

from browser import needs_browser, open_tab
from dvc_render.html import render_html
from dvc_render.vega import VegaRenderer
from helpers import random_images
from imports import ROOT
from PIL import Image
from waiting import wait_for


@needs_browser
def test_without_a_network_the_page_says_why_and_shows_the_pictures(tmp_path: Path) -> None:
    drawn = []
    for table, picture in (("history.csv", "curves.png"), ("confusion.csv", "confusion.png")):
        title = f"results/student/{table}"
        (tmp_path / "results/student").mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "results/student" / picture)
        drawn.append(VegaRenderer([{"x": 1, "y": 2, "rev": "workspace"}], title, x="x", y="y", title=title))
    page = render_html(drawn, tmp_path / "dvc_plots/index.html", ROOT / ".dvc/plots.html")
    with open_tab(tmp_path / "profile") as tab:
        tab.call("Network.setBlockedURLs", urls=["*cdn.jsdelivr.net*"])
        tab.call("Page.navigate", url=Path(page).as_uri())
        wait_for(lambda: tab.value("document.readyState") == "complete")
        assert "could not be loaded" in tab.text()
        assert tab.value("[...document.images].map(each => each.naturalWidth)") == [32, 32]
