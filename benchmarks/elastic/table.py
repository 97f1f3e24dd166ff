"""The tables of the docs."""

from __future__ import annotations

from typing import Any

from benchmarks._record import interval


def table(results: dict[str, Any]) -> str:
    """The tables of the docs."""
    found = {part: result["found"] for part, result in results.items()}
    lines = []
    if "overhead" in found:
        lines += [
            "| training | batch, at once | Elastic's own time | of it in the optimizer "
            "| step ÷ plain step | A/A |",
            "|---|---|---|---|---|---|",
        ]
        for name, r in found["overhead"].items():
            lines.append(
                f"| {name} | {r['batch_size']}, {r['micro_batch_size']} | {r['own_share']:.2%} "
                f"| {max(r['chunks_seconds'], 0) / r['step_seconds']:.2%} "
                f"| {interval(r['ratio'])} | {interval(r['same_again'])} |"
            )
        lines.append("")
    if "exactness" in found:
        lines += [
            "| task | optimizer | precision | each gradient | end after 200 steps with failures "
            "| two undisturbed sizes | retries at one size equal |",
            "|---|---|---|---|---|---|---|",
        ]
        for r in found["exactness"]:
            equal = "bit for bit" if r["retried_equal_bit_for_bit"] else "no"
            lines.append(
                f"| {r['task']} | {r['optimizer']} | {r['dtype']} | {r['gradient']:.1e} "
                f"| {r['end']:.1e} ({r['failures']} failures) | {r['two_sizes']:.1e} | {equal} |"
            )
        lines.append("")
    if "processes" in found:
        lines += [
            "| processes | trainings | failures | deadlocks | differences between processes |",
            "|---|---|---|---|---|",
        ]
        for size, r in found["processes"].items():
            lines.append(
                f"| {size} | {r['runs']} | {r['failures_injected']} | {r['deadlocks']} "
                f"| {r['differences_between_processes']} |"
            )
        lines.append("")
    if "overlap" in found:
        lines += [
            "| 2 processes | batch | gradients sent after the last part ÷ during it "
            "| during it ÷ DDP's own loop |",
            "|---|---|---|---|",
        ]
        for name, r in found["overlap"].items():
            lines.append(
                f"| {name} | {r['batch_size']} "
                f"| {interval(r['after_over_during'])} | {interval(r['during_over_ddp'])} |"
            )
        lines.append("")
    if "lost" in found:
        lines += ["| memory runs out in | steps lost |", "|---|---|"]
        for place, r in found["lost"]["places"].items():
            lines.append(f"| {place} | {r['steps_lost']:.2f} |")
        lines.append("")
    if "peers" in found:
        p = found["peers"]
        lines += [
            "| memory runs out once | ends | restarts | steps lost | batch size afterwards |",
            "|---|---|---|---|---|",
        ]
        for name in ("elastic", "accelerate"):
            r = p[name]
            lines.append(
                f"| {name}, step 25 of 40 | yes | {r['restarts']} | {r['steps_lost']} "
                f"| {r['batch_size']} (was 32) |"
            )
        for name, r in p["ultralytics"].items():
            lost_steps = r["steps_run"] - r["steps_asked"] if r["ended"] else "all"
            lines.append(
                f"| ultralytics, {name} | {'yes' if r['ended'] else 'no'} | – | {lost_steps} "
                f"| {r['batch_size']} (was 8) |"
            )
    return "\n".join(lines) + "\n"
