"""The short table that is printed last: each part in a line or a few, in plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def summary(results: dict[str, Any]) -> str:
    """All parts, the skipped ones with their reason."""
    rows = [("part", "status", "seconds", "what it found")]
    several = len(results["machines"]) > 1
    for part in results["parts"]:
        seconds = "" if part.get("seconds") is None else f"{part['seconds']:.1f}"
        report = list(_lines_of(part))
        if several:
            report.insert(0, f"on machine {part['machine'] + 1}")
        if part.get("why"):
            report.append(_short(part["why"]))
        first_line, *more_lines = report or [""]
        rows.append((part["name"], part["status"], seconds, first_line))
        rows += [("", "", "", line) for line in more_lines]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    head = "dry run on a CPU: no figure means anything; " if results["dry_run"] else ""
    title = f"pyprune GPU check: {head}{results['seconds']:.0f} s of {results['limit_s']:.0f} s, seed {results['seed']}"
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _lines_of(part: dict[str, Any]) -> list[str]:
    tell = _TELLERS.get(part["group"])
    if tell is None or not part.get("result"):
        return _sanitizer_lines(part)
    try:
        return [*tell(part["result"]), *_sanitizer_lines(part)]
    except (KeyError, TypeError, IndexError) as missing:  # a part that was stopped early has not everything
        return [f"incomplete: {missing}"]


def _install(result: dict[str, Any]) -> list[str]:
    done = ", ".join(result.get("libraries", [])) or "no native library"
    return [f"exit code {step['returncode']}: {step['command']}" for step in result["steps"]] + [f"built: {done}"]


def _environment(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    lines = []
    for gpu in machine["gpus"]:
        lines.append(
            f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['compute_capability']}, driver "
            f"{gpu.get('driver', 'unknown')}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [*lines, f"{machine['cpu']}; {versions}; commit {(machine['commit'] or 'unknown')[:12]}"]


def _operators(result: dict[str, Any]) -> list[str]:
    bad = [case for case in result["cases"] if not case["passed"]]
    worst = max((case["ratio"] for case in result["cases"] if isinstance(case["ratio"], (int, float))), default=None)
    line = f"{result['passed']} of {result['of']} cases passed, {result['failed']} failed"
    if worst is not None:
        line += f"; worst error {worst:.2f}x PyTorch's"
    shown = [
        f"  {case['dtype']} {case['operator']}{' (direct)' * case['direct']} {case['case']}: "
        + _short(case["exception"] or f"error {case['error']:.2e}, PyTorch {case['pytorch_error']:.2e}", 70)
        for case in bad[:3]
    ]
    if "trying" in result:
        shown.append(f"  it was trying {result['trying']}")
    return [line, *shown, *([f"  ... and {len(bad) - 3} more"] if len(bad) > 3 else [])]


def _warm(result: dict[str, Any]) -> list[str]:
    return [result["done"]]


def _ceilings(result: dict[str, Any]) -> list[str]:
    copy, read = result["copy_bandwidth"] / 1e9, result["read_bandwidth"] / 1e9
    return [f"copy {copy:.0f} GB/s, read {read:.0f} GB/s, bf16 GEMM {result['gemm_flops'] / 1e12:.1f} TFLOP/s"]


def _model(result: dict[str, Any]) -> list[str]:
    lines = []
    for prompt in result["prompts"]:
        errors = ", ".join(f"{name} {value:.1e}" for name, value in prompt["logits_error"].items())
        lines.append(
            f"batch {prompt['batch']}: logits off by {errors}; tokens as HF {prompt['tokens_as_hf']:.0%}, "
            f"as our CPU {prompt['tokens_as_our_cpu_path']:.0%}"
        )
    return lines


def _steps(result: dict[str, Any]) -> list[str]:
    bad = [case for case in result["cases"] if not case["passed"]]
    worst = max((case["ratio"] for case in result["cases"] if isinstance(case["ratio"], (int, float))), default=None)
    recorded = sum(bool(case.get("recorded")) for case in result["cases"])
    line = f"{result['passed']} of {result['of']} passed, {recorded} of recordings, by {_choice(result)}"
    shown = [
        f"  {case['dtype']} {case['shape']}, batch {case['batch']}, {case['left_out']}: "
        + _short(case["exception"] or f"error {case['error']:.2e}, PyTorch {case['pytorch_error']:.2e}", 70)
        for case in bad[:3]
    ]
    return [line + ("" if worst is None else f"; worst error {worst:.2f}x PyTorch's"), *shown]


def _self_check(result: dict[str, Any]) -> list[str]:
    word = "passed" if result["passed"] else "failed" if result["failures"] else "not finished"
    line = f"{word}: {result['kernels']}, {result['done']} of {result['of']} cases in {result['seconds']:.0f} s"
    return [line, *(f"  {_short(str(failure['case']), 90)}" for failure in result["failures"][:3])]


def _choice(result: dict[str, Any]) -> str:
    return str(result["gpu"].get("chosen", "?"))


def _beside(line: dict[str, Any], name: str = "median_seconds") -> str:
    """The measured milliseconds, and the predicted ones where there are any."""
    text = f"{1000 * line[name]:.3f} ms"
    return text + (f" (predicted {1000 * line['predicted_seconds']:.3f})" if "predicted_seconds" in line else "")


def _decode(result: dict[str, Any]) -> list[str]:
    lines = []
    for one in result["timings"]:
        name = f"{result['model']} batch {one['batch']}, cache {one['cache']}: "
        if "median_seconds" not in one:
            lines.append(name + _short(one.get("error", "not timed"), 90))
            continue
        share = f", {one['share_with_cache']:.0%} of bandwidth" if "share" in one else ""
        lines.append(name + _beside(one) + share + ("" if one["recorded"] else ", not recorded"))
    for one in result["timelines"]:
        first = "; ".join(f"{1e6 * k['seconds']:.0f} us {_short(k['kernel'], 34)}" for k in one["kernels"][:4])
        lines.append(f"  batch {one['batch']}, {one['launches']:.0f} launches: {first}")
    for one in result["prompts"]:
        words = _beside(one) if "median_seconds" in one else _short(one["error"], 90)
        lines.append(f"  a prompt of {result['prompt_tokens']} tokens, batch {one['batch']}: {words}")
    return lines


def _masked(result: dict[str, Any]) -> list[str]:
    lines = []
    for timing in result["timings"]:
        share = "unknown" if timing["masked_share"] is None else f"{timing['masked_share']:.1%}"
        lines.append(
            f"batch {timing['batch']}: a masked block costs {share} of a block of "
            f"{1e6 * timing['block_seconds']:.0f} us, a clear mask {timing['clear_mask_share']:+.1%} of a step"
        )
    return lines


def _widths(result: dict[str, Any]) -> list[str]:
    lines = []
    for timing in result["timings"]:
        cells = ", ".join(f"{name} {1e6 * seconds:.1f}" for name, seconds in timing["median_seconds"].items())
        predicted = f" (predicted {1e6 * timing['predicted_seconds']:.1f})" if "predicted_seconds" in timing else ""
        lines.append(f"{timing['rows']:5} rows, {timing['role']} {timing['width']}: us {cells}{predicted}")
        lines += [f"  {name}: {_short(text, 80)}" for name, text in timing["errors"].items()]
    return lines


def _layer_peer(result: dict[str, Any]) -> list[str]:
    lines = []
    for timing in result["timings"]:
        cells = ", ".join(f"{name} {1000 * seconds:.3f} ms" for name, seconds in timing["median_seconds"].items())
        ratio = f": ours {timing['speedup']['median']:.2f}x" if "speedup" in timing else ""
        lines.append(f"{timing['mode']}, batch {timing['batch']}: {cells}{ratio}")
    return [*lines, *(f"{name}: {_short(text, 90)}" for name, text in result["absent"].items())]


def _generations(result: dict[str, Any]) -> list[str]:
    lines = []
    for timing in result["timings"]:
        ratio = f", {timing['speedup']['median']:.2f}x the original" if "speedup" in timing else ""
        over = f", {timing['over_hf']['median']:.2f}x Hugging Face" if "over_hf" in timing else ""
        lines.append(f"{timing['row']}, {timing['engine']}: {timing['latency_s']:.3f} s{ratio}{over}")
    return [*lines, *_errors(result)]


def _sweep(result: dict[str, Any]) -> list[str]:
    return [f"{len(result['points'])} points, {'all' if result['finished'] else 'not all'} of them", *_errors(result)]


def _errors(result: dict[str, Any]) -> list[str]:
    return [f"{name}: {_short(text, 80)}" for name, text in list(result["errors"].items())[:3]]


def _scoring(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['blocks']} blocks, {result['samples']} x {result['tokens']} tokens:"]
    lines += [_beside(result)] if "median_seconds" in result else []
    if "speedup" in result:
        difference = result["largest_relative_difference"]
        lines.append(f"{result['speedup']['median']:.2f}x the naive loop, scores differ by at most {difference:.1e}")
    return [" ".join([*lines, *(f"{name}: {_short(text, 80)}" for name, text in result["errors"].items())])]


def _table1(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in dict.fromkeys(line["row"] for line in result["timings"]):
        cells = []
        by_batch = {line["batch"]: line for line in reversed(result["timings"]) if line["row"] == row}
        for line in sorted(by_batch.values(), key=lambda timing: timing["batch"]):
            ratio = f", {line['speedup']['median']:.2f}x" if "speedup" in line else ""
            cells.append(f"M={line['batch']} {1000 * line['median_step_seconds']:.3f} ms{ratio}")
        lines.append(f"{row:24} {'; '.join(cells)}")
    return [*lines, *_errors(result)]


def _sanitizer_lines(part: dict[str, Any]) -> list[str]:
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", part.get("output_tail", ""))
    return summaries[-1:]


_TELLERS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "install": _install, "environment": _environment, "operators": _operators, "steps": _steps, "sanitizer": _operators,
    "self_check": _self_check, "weights": _model, "warm": _warm, "ceilings": _ceilings, "decode": _decode,
    "masked": _masked, "widths": _widths, "scoring": _scoring, "table1": _table1, "generations": _generations,
    "layer_peer": _layer_peer, "sweep": _sweep,
}  # fmt: skip


def _short(text: str, width: int = 110) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 3] + "..."
