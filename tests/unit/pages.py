"""What a page is made of, and how a browser sees it."""

import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "col", "br", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LIGHT, DARK = 1, 0
LOOK_S = 90
CHECK = """
<script src="{axe}"></script><script>
(async () => {{
  const found = {{}};
  for (const one of document.querySelectorAll("details")) one.open = true;
  const page = document.documentElement;
  found.width = [page.scrollWidth, window.innerWidth];
  found.unseen = [...document.querySelectorAll("a, summary")].filter(one => {{
    one.focus({{focusVisible: true}});
    return document.activeElement !== one || getComputedStyle(one).outlineStyle === "none";
  }}).map(one => one.outerHTML.slice(0, 120));
  document.activeElement.blur();
  const result = await axe.run(document, {{resultTypes: ["violations"]}});
  found.violations = result.violations.map(one => [one.id, one.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]);
  found.passed = result.passes.length;
  const shown = document.createElement("pre");
  shown.id = "found";
  shown.textContent = JSON.stringify(found);
  document.body.append(shown);
}})();
</script></body>"""


class Outline(HTMLParser):
    """Headings, ids, links and pictures of a page; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.pictures = 0
        self.titles: list[str] = []
        """Of pictures."""
        self.text = ""
        """All that people read."""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.pictures += tag == "svg" and values.get("role") == "img"
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(values["href"])] if "href" in values else []
        self.fetched += [str(values["src"])] if "src" in values else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"] and "svg" in self.open:
            self.titles.append(data)
        elif "style" not in self.open:
            self.text += f"{data} "


def stands_alone(text: str) -> Outline:
    """A page fetches nothing, runs nothing, has headings in order, links that lead somewhere and named pictures."""
    outline = Outline(text)
    assert not outline.fetched
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")  # a page that loads itself again says so by that name
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert outline.pictures == len(outline.titles)
    return outline


def seen_by_a_browser(page: Path, width: int, theme: int) -> dict[str, Any]:
    """What axe-core, the layout and the keyboard find in a page; the test is skipped where the tools are absent.

    Returns:
        ``violations`` (rule and elements), ``passed`` (rules), ``width`` (of the content and of the window), ``unseen``
        (links and summaries whose focus cannot be seen).
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs Chromium, which is not installed ('apt-get install chromium')")
    axe = _axe()
    if axe is None:
        pytest.skip("needs axe-core, which is not installed ('npm install --global axe-core')")
    checked = page.with_name(f"checked-{width}-{theme}.html")
    text = page.read_text(encoding="utf-8").replace("</body>", CHECK.format(axe=axe.as_uri()))
    checked.write_text(text, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"]
    command += [f"--blink-settings=preferredColorScheme={theme}", "--virtual-time-budget=60000", "--dump-dom"]
    seen = subprocess.run([*command, checked.as_uri()], capture_output=True, text=True, timeout=LOOK_S, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', seen.stdout, re.DOTALL)
    assert found, seen.stdout[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@cache
def _axe() -> Path | None:
    folders = Path(__file__).resolve().parents
    roots = [folder / inner for folder in folders for inner in ("node_modules", ".serin/tools/node_modules")]
    if npm := shutil.which("npm"):
        asked = subprocess.run([npm, "root", "--global"], capture_output=True, text=True, timeout=LOOK_S, check=False)
        roots.append(Path(asked.stdout.strip() or "."))
    files = [root / "axe-core" / "axe.min.js" for root in roots]
    return next((file for file in files if file.is_file()), None)
