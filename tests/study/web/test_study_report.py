"""The report: one file that shows what the page shows, with the network off."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_sites import METRICS, MadeUp, along, values

from rightbatch._errors import UsageError
from rightbatch._study.web import report, template
from rightbatch._study.web.bundle import bundle
from rightbatch._study.web.report import write_report

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

NASTY = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def unpacked(path: Path) -> Any:
    """The documents of a report."""
    text = path.read_text("utf-8")
    packed = re.search(r'id="packed-documents">([^<]*)<', text)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_it_opens_from_a_file_with_the_network_off(browser: Any, tmp_path: Path) -> None:
    made = MadeUp(sizes=(8, 16, 32, 64), seeds=2, out_of_memory=[64])
    made.changes |= {"title": f"parts {NASTY}", "live": True}
    made.changes["answer"] = {"sentences": [NASTY], "first": dict.fromkeys(("seconds", "steps"), 8)}
    made.runs_[0] |= {"name": NASTY, "reason": NASTY}
    path = write_report(made, tmp_path / "a folder" / "report.html")
    wrong: list[str] = []
    context = browser.new_context(offline=True, viewport={"width": 400, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("request", lambda request: wrong.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{path.as_uri()}#along=examples")
    page.wait_for_selector("#curve .plot[data-drawn]")
    assert page.title() == f"parts {NASTY} · rightbatch"
    assert page.locator("#sentences li").all_text_contents() == [NASTY]
    assert page.locator("#state").text_content() == "report"
    assert page.locator("#curve .xtitle").text_content() == "examples"
    page.get_by_label("seconds", exact=True).check()
    page.wait_for_selector("#curve .xtitle >> text=seconds")
    page.get_by_role("button", name="batch 32, seed 1").click()
    page.wait_for_selector("#detail-curve .plot[data-drawn]")
    assert "optimizersgd" in (page.locator("#parameters").text_content() or "")
    assert page.url == f"{path.as_uri()}#along=seconds&run=run-32-1"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("img").count() == 0
    assert wrong == [f"{path.as_uri()}"]  # the file, and nothing else
    context.close()


def test_what_it_holds_is_what_the_page_is_drawn_from(tmp_path: Path) -> None:
    made = MadeUp(sizes=(8, 64), seeds=2)
    path = write_report(made, tmp_path / "report.html")
    held = unpacked(path)
    assert held["study"] == json.loads(json.dumps(made.study()))
    assert held["curves"].keys() == set(METRICS)
    drawn = held["runs"]["run-64-1"]["curves"]["loss"]
    assert drawn["values"] == pytest.approx(values("loss", 64, 1, 60), rel=1e-4)
    assert drawn["seconds"] == pytest.approx(along("seconds", 64, 60), rel=1e-4)
    band = held["curves"]["loss"]["sizes"][0]["by"]["steps"]
    exact = made.curves("loss")["sizes"][0]["by"]["steps"]
    assert band["middle"] == pytest.approx(exact["middle"], rel=1e-4)
    assert path.stat().st_size < report.LARGEST / 2


def test_curves_get_coarser_until_the_file_is_small_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeUp(sizes=(8, 16, 32), seeds=3, places=200)
    whole = write_report(made, tmp_path / "whole.html").stat().st_size
    for share in (0.6, 0.2):
        bare = whole - len(_packed_part(tmp_path / "whole.html"))
        most = bare + int(share * (whole - bare))
        monkeypatch.setattr(report, "LARGEST", most)
        path = write_report(made, tmp_path / "small.html")
        assert path.stat().st_size <= most
        held = unpacked(path)
        assert len(held["study"]["runs"]) == 9
        band = held["curves"]["loss"]["sizes"][1]["by"]["steps"]
        exact = made.curves("loss")["sizes"][1]["by"]["steps"]
        for end in (0, -1):  # from the first place to the last, however few there are between
            assert band["x"][end] == exact["x"][end]
            assert band["middle"][end] == pytest.approx(exact["middle"][end], rel=1e-4)


def test_without_a_script_the_answer_can_be_read(tmp_path: Path) -> None:
    made = MadeUp(sizes=(8,), seeds=1)
    made.changes["answer"] = {"sentences": ["Batch 8 <is> first."], "first": {}}
    made.changes["title"] = "</title><script>"
    text = write_report(made, tmp_path / "report.html").read_text("utf-8")
    assert "<p>Batch 8 &lt;is&gt; first.</p>" in text
    assert "</title><script>" not in text
    assert text.count("</script>") == text.count("<script") == 3


def test_a_report_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: Path, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match=r"cannot write the report to '.*report.html': No space"):
        write_report(MadeUp(sizes=(8,), seeds=1), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_modules_become_one_script_in_the_order_of_their_needs() -> None:
    modules = {
        "page.js": "import { twice } from './a.js'\nimport {\n  one,\n} from './b.js'\ntwice()",
        "a.js": "import { one } from './b.js'\nconst own = 1\nexport function twice(x) {}",
        "b.js": "const own = 2\nexport const one = 1",
    }
    script = bundle(modules, "page.js")
    assert script.index("module_b_js =") < script.index("module_a_js =")
    assert script.index("module_a_js =") < script.index("module_page_js =")
    assert "import" not in script and "export" not in script
    assert "return { one }" in script and "return { twice }" in script


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import thing from './a.js'", "import thing"),
        ("export default 1", "export default"),
        ("const a = await import('./a.js')", "import"),
        ("import { a } from './none.js'", "no module 'none.js'"),
        ("import { a } from './page.js'", "import each other: page.js -> page.js"),
        ("const a = '</script>'", "</script"),
    ],
)
def test_a_module_that_cannot_be_part_of_one_script_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        bundle({"page.js": text, "a.js": ""}, "page.js")


def test_all_modules_of_the_page_are_in_it() -> None:
    files = {name: data.decode() for name, data in template.files().items()}
    script = bundle(files, "page.js")
    for name in files:
        assert not name.endswith(".js") or f"module_{name.replace('.', '_')} =" in script


def _packed_part(path: Path) -> str:
    return re.search(r'id="packed-documents">([^<]*)<', path.read_text("utf-8"))[1]  # type: ignore[index]
