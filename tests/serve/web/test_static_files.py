"""The static files of both pages: what is shared, and what the pages refer to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rightbatch
from rightbatch._web.files import media_type, read_files

PACKAGE = Path(rightbatch.__file__).parent
PAGES = {
    "serve": (PACKAGE / "_serve/web/static", PACKAGE / "_serve/web/static/index.html"),
    "study": (PACKAGE / "_study/web/static", PACKAGE / "_study/web/templates/index.html"),
}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_imports_or_links_is_delivered(page: str) -> None:
    folder, html = PAGES[page]
    files = read_files(folder)
    for name, data in files.items():
        if name.endswith(".js"):
            imported = re.findall(r"from '\./([\w-]+\.js)'", data.decode())
            assert set(imported) <= files.keys(), name
    linked = re.findall(r'"/static/([\w-]+\.\w+)"', html.read_text(encoding="utf-8"))
    assert linked
    assert set(linked) <= files.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_shared_script_is_used_by_both_pages(page: str) -> None:
    folder, _ = PAGES[page]
    shared = {file.name for file in (PACKAGE / "_web/static").glob("*.js")}
    own = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.js"))
    assert {name for name in shared if f"'./{name}'" in own} == shared


def test_a_page_may_not_have_a_file_of_the_same_name_as_a_shared_one(tmp_path: Path) -> None:
    (tmp_path / "mine.js").touch()
    assert "mine.js" in read_files(tmp_path)
    (tmp_path / "dom.js").touch()
    with pytest.raises(ValueError, match=r"dom\.js"):
        read_files(tmp_path)


def test_media_types_do_not_depend_on_the_machine() -> None:
    assert media_type("dom.js") == "text/javascript"
    assert media_type("base.css") == "text/css"
