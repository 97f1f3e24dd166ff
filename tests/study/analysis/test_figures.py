from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
from study_runs import TARGET, law_of, made, reaching

from rightbatch._errors import MissingExtraError
from rightbatch._study.analysis.bands import band
from rightbatch._study.analysis.colors import palette
from rightbatch._study.analysis.figures import cost_figure, curves_figure, target_figure
from rightbatch._study.analysis.summary import summarize

SIZES = (8, 16, 32, 64, 128, 256)


@pytest.fixture(scope="module")
def runs():
    steps = law_of(300.0, 18_000.0)
    return [
        reaching(
            size,
            steps(size) * (1 + 0.01 * seed),
            seed,
            peak_bytes=size * 2**22,
            limit_bytes=2**30,
        )
        for size in SIZES
        for seed in range(3)
    ] + [made(512, 0, status="out_of_memory", limit_bytes=2**30)]


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_curves_have_a_line_and_a_band_for_each_batch_size(runs):
    pytest.importorskip("plotly")
    figure = curves_figure(runs, "evaluation_loss", "steps", TARGET)
    assert set(named(figure)) == {str(size) for size in SIZES}
    assert len(figure.data) == 2 * len(SIZES)
    expected = band([run for run in runs if run.batch_size == 32], "evaluation_loss", "steps")
    assert expected is not None
    line = named(figure)["32"]
    assert line.x == pytest.approx(expected.x)
    assert line.y == pytest.approx(expected.middle)
    assert {line.line.color for line in named(figure).values()} <= set(
        palette([*SIZES, 512]).values()
    )


def test_what_the_target_took_has_the_fit_and_the_interval(runs):
    pytest.importorskip("plotly")
    summary = summarize(runs, TARGET)
    for cost, power in (("steps", 0), ("examples", 1)):
        points, fit = target_figure(summary, cost).data
        assert list(points.x) == list(SIZES)
        law = [law_of(300.0, 18_000.0)(size) * 1.01 * size**power for size in SIZES]
        assert points.y == pytest.approx(law, rel=1e-3)
        by_size = dict(zip(fit.x, fit.y, strict=True))
        assert [by_size[size] for size in SIZES] == pytest.approx(law, rel=0.02)
    assert len(target_figure(summary, "seconds").data) == 1


def test_what_a_size_costs_has_the_limit_and_those_that_ran_out_of_memory(runs):
    pytest.importorskip("plotly")
    traces = named(cost_figure(summarize(runs, TARGET)))
    assert traces["peak memory"].y == pytest.approx([size / 2**8 for size in SIZES])
    assert set(traces["limit"].y) == {1.0}
    assert list(traces["out of memory"].x) == [512]


def test_a_study_without_anything_can_be_drawn():
    pytest.importorskip("plotly")
    empty = summarize([])
    for figure in (curves_figure([], "loss"), target_figure(empty), cost_figure(empty)):
        figure.to_json()


def test_without_plotly_the_extra_that_brings_it_is_named(monkeypatch, runs):
    whole = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("plotly"):
            raise ImportError(name)
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"rightbatch\[study\]"):
        curves_figure(runs, "evaluation_loss")


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
_SEEN = {
    "all": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colors):
    channels = np.array([list(bytes.fromhex(each[1:])) for each in colors]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(colors):
    return linear(colors) @ [0.2126, 0.7152, 0.0722]


def lab(light):
    """CIE L*a*b* of linear sRGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratios = np.clip(light, 0, 1) @ np.transpose(to_xyz) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8, 12])
def test_colors_go_from_light_to_dark_and_stand_out_from_both_grounds(count):
    colors = list(palette(2**k for k in range(count)).values())
    light = luminance(colors)
    assert (np.diff(light) < 0).all()
    assert (1.05 / (light + 0.05)).min() >= 3
    (dark,) = luminance(["#191b1e"])
    assert ((light + 0.05) / (dark + 0.05)).min() >= 3


@pytest.mark.parametrize("seen_by", _SEEN)
def test_any_two_of_eight_colors_are_told_apart_with_any_colour_vision(seen_by):
    seen = lab(linear(palette(range(8)).values()) @ np.transpose(_SEEN[seen_by]))
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert least > 4 * 2.3  # four times what is just noticed


def test_a_size_has_one_color_in_whatever_order_sizes_come():
    assert palette([64, 8, 16, 8]) == palette([8, 16, 64])
    assert list(palette([64, 8, 16])) == [8, 16, 64]
