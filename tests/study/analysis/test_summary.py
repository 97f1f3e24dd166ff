from __future__ import annotations

import json

import numpy as np
import pytest
from study_runs import TARGET, curve, law_of, made, reaching

from rightbatch._study.analysis.sentences import no_overlap_probability
from rightbatch._study.analysis.summary import summarize
from rightbatch._study.records import Target

SIZES = (8, 16, 32, 64, 128, 256)


def study(sizes=SIZES, seeds=3, spread=0.01, speed=lambda size: 1000.0, **fields):
    """Steps follow S_min = 300, E_min = 18,000, with seeds so far apart."""
    steps = law_of(300.0, 18_000.0)
    return [
        reaching(
            size,
            steps(size) * (1 + spread * (seed - (seeds - 1) / 2)),
            seed,
            examples_per_second=speed(size),
            **fields,
        )
        for size in sizes
        for seed in range(seeds)
    ]


def slowing(size):
    return 1000 * size / (size + 100) * 10


def test_the_first_of_each_cost_is_the_one_that_the_law_says():
    summary = summarize(study(speed=slowing), TARGET)
    steps = law_of(300.0, 18_000.0)
    seconds = {size: steps(size) * size / slowing(size) for size in SIZES}
    assert summary.first == {
        "seconds": min(seconds, key=seconds.__getitem__),
        "steps": 256,
        "examples": 8,
    }
    said = summary.sentences
    best = summary.first["seconds"]
    assert said[0].startswith(f"Batch size {best} reached evaluation_loss=0.5 first in seconds: ")
    assert said[1].startswith("Batch size 256 took the fewest steps to it: 370 (")
    assert said[2].startswith("Batch size 8 took the fewest examples to it: 20,400 (")
    assert "3 seeds" in said[0]


def test_the_critical_batch_size_is_the_law_s_and_is_never_called_the_noise_scale():
    summary = summarize(study(), TARGET)
    assert summary.critical is not None
    assert summary.critical.batch_size == pytest.approx(60, rel=0.01)
    (said,) = [each for each in summary.sentences if "more parallelism stops paying" in each]
    assert said.startswith("Above about 60")
    assert "the critical batch size" in said
    assert "noise scale" not in " ".join(summary.sentences)


def test_sizes_whose_bands_overlap_with_the_best_cannot_be_told_apart():
    summary = summarize(study(spread=0.2), TARGET)
    assert "(398) and 64" not in summary.sentences[1]
    assert "128 (441) cannot be told apart from it with 3 seeds" in summary.sentences[1]
    apart = summarize(study(spread=0.001), TARGET)
    assert not any("told apart" in each for each in apart.sentences)


def test_with_one_seed_the_order_may_be_chance():
    summary = summarize(study(seeds=1), TARGET)
    assert any("may be chance" in each for each in summary.sentences)
    assert "(1 seed)" in summary.sentences[0]


def test_a_size_that_few_runs_reached_is_never_first_and_is_named():
    lucky = [reaching(512, 5.0, 0), made(512, 1), made(512, 2)]
    summary = summarize([*study(), *lucky, made(1024, 0)], TARGET)
    assert summary.first["steps"] == 256
    assert "Runs that reached it: 1 of 3 at 512 and none of 1 at 1024" in str(summary)
    assert "512 (1 of 3 runs reached the target: left out)" in summary.critical_reason


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("out_of_memory", "ran out of memory"),
        ("diverged", "diverged"),
        ("failed", "failed"),
        ("stopped", "stopped early"),
    ],
)
def test_sizes_that_did_not_finish_are_named_with_their_reasons(status, words):
    ended = [made(512, seed, status=status, reason=f"why {seed % 2}.") for seed in range(3)]
    summary = summarize([*study(), *ended], TARGET)
    sentence = f"Batch size 512 {words} in 3 of 3 runs: why 0; why 1."
    assert summary.sentences.count(sentence) == 1
    assert (summary.sentences[0] == sentence) == (status == "failed")  # an answer lacks this size


def test_nothing_is_left_out_silently():
    runs = [
        *study(),
        made(8, 0, status="stopped", started=-1.0),
        made(None, None),
        made(16, 9, status="running"),
        *(reaching(32, 5000.0, seed, factor=0.1) for seed in range(3)),
    ]
    said = str(summarize(runs, TARGET))
    assert "1 run is left out: stopped and restarted." in said
    assert "1 run is left out: unknown batch size." in said
    assert "1 run is still running." in said
    assert "the best learning rate that was tried: × 1 at 32." in said


def test_unlike_runs_are_not_compared_silently():
    runs = [
        made(8, 0, device="cpu", parameters={"imgsz": "320", "batch_size": "8"}),
        made(16, 0, device="cuda:0", parameters={"imgsz": "640", "batch_size": "16"}),
    ]
    said = str(summarize(runs))
    assert "different devices (cpu, cuda:0)" in said
    assert "differ in more than batch size: imgsz (320, 640)." in said
    assert "batch_size" not in said


def test_memory_is_told_at_each_size_against_the_limit():
    runs = [
        made(size, seed, peak_bytes=size * 2**20 + seed, limit_bytes=2**30)
        for size in (8, 16)
        for seed in range(2)
    ]
    said = str(summarize(runs))
    assert "Peak memory: 8.00 MiB at 8 and 16.0 MiB at 16, of a limit of 1.00 GiB." in said
    many = [made(size, 0, peak_bytes=size * 2**20) for size in range(1, 20)]
    assert "Peak memory: from 1.00 MiB at 1 to 19.0 MiB at 19." in str(summarize(many))


def test_a_target_that_nothing_reached_says_what_came_nearest():
    summary = summarize(study(), Target("evaluation_loss", 0.001))
    assert summary.first == {"seconds": None, "steps": None, "examples": None}
    assert summary.sentences[0].startswith("No run reached evaluation_loss=0.001; batch size ")
    assert summary.critical is None
    assert "needs 3 batch sizes" in summary.critical_reason


def test_a_target_that_nothing_measures_says_what_was_measured():
    said = summarize(study(), Target("accuracy", 0.9)).sentences[0]
    assert said.endswith("accuracy was not measured; what was: evaluation_loss.")


def test_while_runs_go_on_no_verdict_is_final():
    said = summarize(study(status="running"), Target("evaluation_loss", 0.001)).sentences[0]
    assert said.startswith("No run has yet reached")


@pytest.mark.parametrize(("metric", "best"), [("evaluation_loss", 8), ("accuracy", 32)])
def test_without_a_target_sizes_are_compared_at_equal_examples(metric, best):
    """Each size's metric grows with examples at its own rate; runs differ in length."""
    runs = [
        made(
            size,
            seed,
            {metric: curve(size, steps, size * steps * rate * (1 + 0.001 * seed))},
        )
        for size, rate, last in ((8, 1.0, 500), (16, 1.5, 250), (32, 2.0, 100))
        for seed in range(3)
        for steps in [np.linspace(1, last, 50)]
    ]
    cut_short = [
        made(8, 9, {metric: curve(8, np.ones(1), np.ones(1))}, status=status)
        for status in ("stopped", "diverged", "running")
    ]
    summary = summarize([*runs, *cut_short])
    assert summary.sentences[0].startswith("No target was set")
    least = min(32 * 100, 16 * 250, 8 * 500)
    assert summary.sentences[1].startswith(
        f"After {least:,} examples, the most that all sizes have seen, {metric} is best at batch "
        f"size {best}: "
    )
    assert summary.first == {"seconds": None, "steps": None, "examples": None}
    assert summary.critical is None
    assert "no target was set" in summary.critical_reason


def test_without_runs_it_says_so():
    summary = summarize([])
    assert summary.sentences == ("There are no runs yet.",)
    assert summarize([], TARGET).sentences == ("There are no runs yet.",)
    json.dumps(summary.to_dict(), allow_nan=False)


def gapped(gaps, seeds=3, spread=0.01):
    steps = np.arange(1.0, 51)
    return [
        made(
            size,
            seed,
            {
                "loss": curve(size, steps, np.full(50, 0.2)),
                "evaluation_loss": curve(size, steps, np.full(50, 0.2 + gap + spread * seed)),
            },
        )
        for size, gap in gaps.items()
        for seed in range(seeds)
    ]


def test_a_gap_whose_bands_overlap_is_no_difference():
    said = summarize(gapped({8: 0.1, 64: 0.11, 256: 0.12})).gap_sentence
    assert said == "The gap's bands overlap: this study shows no difference."


def test_a_gap_whose_bands_are_apart_is_told_with_how_often_chance_does_that():
    said = summarize(gapped({8: 0.1, 64: 0.115, 256: 0.2})).gap_sentence
    assert "0.11 (0.1 to 0.12, 3 seeds) at batch size 8" in said
    assert "0.21 (0.2 to 0.22, 3 seeds) at 256" in said
    assert "by chance in 1 in 10 of such pairs" in said


def test_with_one_seed_no_gap_differs():
    said = summarize(gapped({8: 0.1, 64: 0.5}, seeds=1)).gap_sentence
    assert "may be chance" in said


def test_a_gap_that_was_not_measured_is_not_told():
    assert "cannot be compared" in summarize(study(), TARGET).gap_sentence


def test_how_often_bands_are_apart_by_chance_is_as_often_as_shuffled_seeds_are():
    random = np.random.default_rng(0)
    for count, other in ((2, 2), (3, 3), (3, 4)):
        drawn = random.standard_normal((20_000, count + other))
        one, two = drawn[:, :count], drawn[:, count:]
        apart = (one.max(1) < two.min(1)) | (two.max(1) < one.min(1))
        assert 1 / int(no_overlap_probability(count, other).split()[-1]) == pytest.approx(
            apart.mean(), rel=0.1
        )
