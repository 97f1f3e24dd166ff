"""What a notebook shows of a result."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

import rightbatch as rb
from rightbatch._workload.notebook import ShownInNotebooks


class Answer(ShownInNotebooks):
    def __init__(self, text: str, table: Sequence[Sequence[object]] = ()) -> None:
        self._text, self._rows = text, table

    def __str__(self) -> str:
        return self._text

    def _table(self) -> Sequence[Sequence[object]]:
        return self._rows


def shown(answer: ShownInNotebooks) -> ET.Element:
    return ET.fromstring(f"<div>{answer._repr_html_()}</div>")


def test_the_answer_its_details_and_the_table_are_shown_as_they_are() -> None:
    table = [("batch", "peak"), (8, "<1 GiB"), (16, "2 GiB")]
    root = shown(Answer("size 8 & no more\nfirst\n  <second>", table))
    assert root.findtext("p/strong") == "size 8 & no more"
    assert root.findtext("pre") == "first\n  <second>"
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert rows == [["batch", "peak"], ["8", "<1 GiB"], ["16", "2 GiB"]]


def test_what_is_missing_leaves_no_empty_parts() -> None:
    assert [part.tag for part in shown(Answer("size 8"))] == ["p"]
    assert [part.tag for part in shown(Answer("size 8", [("batch", "peak")]))] == ["p"]


def test_the_results_of_all_verbs_show_themselves() -> None:
    results = (rb.FitResult, rb.Prediction, rb.Plan, rb.StudyResult, rb.TrainResult, rb.RunReport)
    assert all(issubclass(kind, ShownInNotebooks) for kind in results)
