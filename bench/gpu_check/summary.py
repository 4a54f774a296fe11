"""The short table that is printed last: each part in a line or a few, in plain text."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any


def summary(results: dict[str, Any]) -> str:
    """All parts, the skipped ones with their reason."""
    rows = [("part", "status", "seconds", "what it found")]
    for part in results["parts"]:
        seconds = "" if part.get("seconds") is None else f"{part['seconds']:.1f}"
        said = list(_found(part))
        if part.get("why"):
            said.append(_short(part["why"]))
        first, *rest = said or [""]
        rows.append((part["name"], part["status"], seconds, first))
        rows += [("", "", "", line) for line in rest]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    head = "dry run on a CPU: no figure means anything; " if results["dry_run"] else ""
    title = f"pyprune GPU check: {head}{results['seconds']:.0f} s of {results['limit_s']:.0f} s, seed {results['seed']}"
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _found(part: dict[str, Any]) -> list[str]:
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


def _cpu(result: dict[str, Any]) -> list[str]:
    counts = f"{result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped"
    return [f"{', '.join(result['isas']) or 'no native library'}: {counts}"]


def _warm(result: dict[str, Any]) -> list[str]:
    return [", ".join(result["done"])]


def _ceilings(result: dict[str, Any]) -> list[str]:
    copy, read = result["copy_bandwidth"] / 1e9, result["read_bandwidth"] / 1e9
    return [f"copy {copy:.0f} GB/s, read {read:.0f} GB/s, bf16 GEMM {result['gemm_flops'] / 1e12:.1f} TFLOP/s"]


def _model(result: dict[str, Any]) -> list[str]:
    lines = []
    for one in result["prompts"]:
        errors = ", ".join(f"{name} {value:.1e}" for name, value in one["logits_error"].items())
        lines.append(
            f"batch {one['batch']}: logits off by {errors}; tokens as HF {one['tokens_as_hf']:.0%}, "
            f"as our CPU {one['tokens_as_our_cpu_path']:.0%}"
        )
    return lines


def _decode(result: dict[str, Any]) -> list[str]:
    lines = []
    for one in result["timings"]:
        words = [f"{one['model']} batch {one['batch']}:"]
        for name in ("hf", "pyprune"):
            if f"{name}_step_seconds" in one:
                share = one[f"{name}_share"]
                words.append(
                    f"{name} {1000 * one[f'{name}_step_seconds']:.2f} ms/step"
                    + ("" if share is None else f" ({share:.0%} of bandwidth)")
                )
        words += [f"{one['speedup']['median']:.2f}x HF"] if "speedup" in one else []
        words += [f"{name}: {_short(text, 60)}" for name, text in one["errors"].items()]
        lines.append(" ".join(words))
    return lines


def _skipping(result: dict[str, Any]) -> list[str]:
    steps = ", ".join(f"{name} {1000 * seconds:.3f} ms" for name, seconds in result["step_seconds"].items())
    lines = [f"{result['model']}, blocks {result['left_out']} left out, a step: {steps}"]
    if "masked_share" in result:
        lines.append(
            f"a masked block costs {result['masked_share']:.1%} of a block, a mask that is clear "
            f"{result['clear_mask_share']:.1%} of a step; same tokens: {result['same_tokens']}"
        )
    return [*lines, *(f"{name}: {_short(text, 80)}" for name, text in result["errors"].items())]


def _profile(result: dict[str, Any]) -> list[str]:
    lines = []
    for one in result["runs"]:
        lines.append(f"{one['what']}: {1000 * one['seconds']:.2f} ms of kernels")
        lines += [
            f"  {1000 * k['seconds']:9.3f} ms in {k['launches']:5} launches  {_short(k['kernel'], 90)}"
            for k in one["kernels"][:9]
        ]
    return lines


def _compiled(result: dict[str, Any]) -> list[str]:
    shares = result.get("share", {})
    words = [f"{result['model']}, batch {result['batch']}, {result['mode']}:"]
    for name, step in result["step_seconds"].items():
        words.append(
            f"{name} {1000 * step:.3f} ms/step" + (f" ({shares[name]:.0%} of bandwidth)" if name in shares else "")
        )
    if "speedup" in result:
        one = result["speedup"]
        interval = "" if one["low"] is None else f" [{one['low']:.2f}, {one['high']:.2f}]"
        words.append(f"{one['median']:.2f}x{interval}")
    words += [f"{name}: {_short(text, 100)}" for name, text in result["absent"].items()]
    return [" ".join(words)]


def _attention(result: dict[str, Any]) -> list[str]:
    lines = []
    for one in result["timings"]:
        words = [f"{one['model']}, {one['sequences']} x {result['tokens']} tokens:"]
        words += [f"{name} {1e6 * statistics.median(taken):.0f} us" for name, taken in one["seconds"].items()]
        if "speedup" in one:
            low, high = one["speedup"]["low"], one["speedup"]["high"]
            interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
            words.append(f"ours {one['speedup']['median']:.2f}x SDPA{interval}")
        words += [f"{name}: {_short(text, 60)}" for name, text in one["failures"].items()]
        lines.append(" ".join(words))
    return lines


def _scoring(result: dict[str, Any]) -> list[str]:
    words = [f"{result['blocks']} blocks, {result['samples']} x {result['tokens']} tokens:"]
    words += [f"{result['median_seconds']:.3f} s"] if "median_seconds" in result else []
    if "speedup" in result:
        difference = result["largest_relative_difference"]
        words.append(f"{result['speedup']['median']:.2f}x the naive loop, scores differ by at most {difference:.1e}")
    return [" ".join([*words, *(f"{name}: {_short(text, 80)}" for name, text in result["errors"].items())])]


def _table1(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in dict.fromkeys(line["row"] for line in result["timings"]):
        cells = []
        for batch in dict.fromkeys(line["batch"] for line in result["timings"]):
            own = {line["engine"]: line for line in result["timings"] if (line["row"], line["batch"]) == (row, batch)}
            figures = [f"{name} {line.get('speedup', float('nan')):.2f}x" for name, line in own.items()]
            ratio = own.get("pyprune", {}).get("pyprune_vs_hf")
            cells.append(f"M={batch} {' '.join(figures)}" + ("" if ratio is None else f" (ours {ratio:.2f}x HF)"))
        lines.append(f"{row:24} {'; '.join(cells)}")
    return [*lines, *(f"{name}: {_short(text, 80)}" for name, text in list(result["errors"].items())[:3])]


def _sanitizer_lines(part: dict[str, Any]) -> list[str]:
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", part.get("output_tail", ""))
    return found[-1:]


_TELLERS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "install": _install, "environment": _environment, "operators": _operators, "cpu": _cpu, "ceilings": _ceilings,
    "warm": _warm,
    "model": _model, "decode": _decode, "skipping": _skipping, "profile": _profile, "compiled": _compiled,
    "attention": _attention, "scoring": _scoring, "table1": _table1,
    "sanitizer": _operators,
}  # fmt: skip


def _short(text: str, width: int = 110) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 3] + "..."
