"""Rows that others measured: how they are read, grouped, stored and summarized."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.predict_public import run, summary
from benchmarks.predict_public.rows import Row, grouped, read

HEADS = {
    "timm_train_rtx3090.csv": "model,layout,image_size,ran,failed,step_ms\n",
    "timm_infer.csv": "gpu,model,image_size,ran,failed,step_ms\n",
    "peft_llama32_3b_l40s.jsonl": "",
}
LINES = {
    "timm_train_rtx3090.csv": "resnet50,nhwc,224,192,256,1.5\nresnet18,nchw,224,512,,1.5\n",
    "timm_infer.csv": "RTX 4090,vit_base,224,512,768,1\nRTX 5090,vit_base,224,768,1024,1\n",
    "peft_llama32_3b_l40s.jsonl": '{"experiment": "lora", "gpu": "NVIDIA L40S", "max_bytes": 7}\n',
}


def folder(path: Path) -> Path:
    for name, head in HEADS.items():
        (path / name).write_text(head + LINES[name])
    return path


def line(largest: int | None, **fields: Any) -> dict[str, Any]:
    row = Row("infer", "vit", "RTX 4090", 224, ran=256, failed=384)
    more = {"step_seconds": 1.0, "largest": largest, "family": "attention"}
    return run.as_line(row) | more | fields


def test_only_rows_with_both_ends_of_a_bracket_or_bytes_are_read(tmp_path: Path) -> None:
    rows = read(folder(tmp_path))
    assert [(row.model, row.ran, row.failed, row.peak_bytes) for row in rows] == [
        ("resnet50", 192, 256, 0),
        ("vit_base", 512, 768, 0),
        ("vit_base", 768, 1024, 0),
        ("lora", 0, 0, 7),
    ]
    assert len({row.key for row in rows}) == len(rows)


def test_rows_of_one_step_are_together_in_an_order_of_the_seed() -> None:
    rows = [
        Row("infer", f"model{number}", gpu, 224, ran=1, failed=2)
        for gpu in ("RTX 5090", "RTX PRO 6000 Max-Q")
        for number in range(20)
    ]
    groups = grouped(rows, seed=1)
    assert [len(group) for group in groups] == [2] * 20
    assert {g[0].model for g in groups} == {row.model for row in rows}
    assert [g[0].model for g in groups] == [g[0].model for g in grouped(rows, seed=1)]
    assert [g[0].model for g in groups] != [g[0].model for g in grouped(rows, seed=2)]


def test_relatives_are_in_the_same_half() -> None:
    halves = {Row("infer", f"vit_{size}", "RTX 4090").half for size in ("tiny", "huge", "large")}
    assert len(halves) == 1
    assert {Row("infer", name, "").half for name in ("vit", "resnet", "swin", "levit")} == {
        "fit",
        "test",
    }


def test_hits_failing_predictions_and_unused_memory() -> None:
    lines = [line(256), line(383), line(384), line(128), line(None)]
    found = summary.figures(lines)
    assert (found["hits"], found["failing"], found["below"]) == (2, 1, 2)
    assert found["position"] == pytest.approx((0 + 127 / 128) / 2)
    assert found["unused"] == pytest.approx((0.5 + 1.0) / 5)
    assert summary.outside(lines[2]) == pytest.approx(384 / 383 - 1)
    assert summary.outside(lines[3]) == pytest.approx(-0.5)


def test_a_row_that_is_not_followed_is_counted_with_its_reason() -> None:
    failed = line(0, error="ValueError: no value")
    del failed["largest"]
    text = summary.table([line(300), failed])
    assert "| inference, RTX 4090 | 2 | 1 | 1 (100%) |" in text
    assert "| ValueError: no value | 1 |" in text


def test_errors_of_fine_tunings_are_stated_about_their_median() -> None:
    lines = [
        run.as_line(Row("peft", name, "NVIDIA L40S", peak_bytes=1000))
        | {"reserved": reserved, "step_seconds": 20.0}
        for name, reserved in (("osf", 900), ("lora", 1010), ("miss", 1014))
    ]
    text = summary.table(lines)
    assert "3 fine-tunings of a 3B model: reserved bytes +1.0% at the median; 2 are" in text
    assert "2 are within 2% of it, 0.2% from it at their median; 20 s each" in text
    assert "; farther: osf (-10.0%)\n" in text


def test_stored_rows_are_not_predicted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def predicted(rows: list[Row]) -> list[dict[str, Any]]:
        asked.extend(row.key for row in rows)
        return [{"largest": 300}] * len(rows)

    monkeypatch.setattr(run, "predicted", predicted)
    monkeypatch.setattr(run, "importlib", type("Imports", (), {"import_module": staticmethod(id)}))
    out = tmp_path / "out.jsonl"
    arguments = ["--data", str(folder(tmp_path)), "--out", str(out), "--only", "infer"]
    run.main(arguments)
    assert len(asked) == 2
    assert [json.loads(text)["largest"] for text in out.read_text().splitlines()] == [300, 300]
    run.main(arguments)
    assert len(asked) == 2
    run.main([*arguments, "--again"])
    assert len(asked) == 4


def test_a_step_that_takes_too_long_or_dies_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("infer", "vit", "RTX 4090", 224, ran=1, failed=2)
    monkeypatch.setattr(run, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(run, "predictions", lambda rows: time.sleep(60))
    assert run.predicted([row]) == [{"error": "not predicted in 0.2 seconds"}]
    monkeypatch.setattr(run, "LIMIT_SECONDS", 60)
    monkeypatch.setattr(run, "predictions", lambda rows: os._exit(9))
    assert run.predicted([row]) == [{"error": "the process ended with exit code 9"}]
    monkeypatch.setattr(run, "predictions", lambda rows: [{"largest": 3}])
    (found,) = run.predicted([row])
    assert found["largest"] == 3
