"""Where a result agrees with the paper, where not, and why: sentences by rules, from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from pyprune.study.alignment import alignments
from pyprune.study.findings import FEW_RUNS
from pyprune.study.measure import Speedup, speedup
from pyprune.study.paper import facts
from pyprune.study.paper.evidence import GENERATION, STEP, Evidence, Peak, Timing

TOLERANCE = 0.03
"""What is called the same: a speed within 3 % of what is predicted; a printed speed-up within 3 % of 1."""

LAUNCH_BOUND = 2.0
"""A step that takes this many times what its bytes need is bound by something else than the memory."""

MEMORY_TOLERANCE = 0.05
WAYS = ((GENERATION, "hf"), (GENERATION, "pyprune"), (STEP, "pyprune"))
"""How speeds are reported, in this order: whole generations of both engines, and replayed steps."""

WAY_NAMES = {
    (GENERATION, "hf"): "Hugging Face eager, generations",
    (GENERATION, "pyprune"): "pyprune, generations",
    (STEP, "pyprune"): "pyprune, replayed steps",
}
AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"
VERDICTS = {AGREES: "agree", DISAGREES: "disagree", UNDECIDED: "undecided"}
VERDICT_NAMES = {AGREES: "as in the paper", DISAGREES: "other than in the paper", UNDECIDED: "undecided"}
SLOWER, SAME, FASTER = "slower", "as fast", "faster"


def paper_gpu(evidence: Evidence) -> str:
    """Which of the paper's two GPUs stands beside the results: the RTX 3090 for one of those, else the H100."""
    return "RTX3090" if "3090" in evidence.device else "H100"


def direction(gain: Speedup) -> str | None:
    """Slower or faster than the original, where the 95 % interval of the median says so; as fast where all of it is
    within 3 % of 1; else None."""
    low, high = gain["low"], gain["high"]
    if low is None or high is None:
        return None
    if low >= 1 - TOLERANCE and high <= 1 + TOLERANCE:
        return SAME
    return SLOWER if high < 1 else FASTER if low > 1 else None


def printed_direction(value: float) -> str:
    """The same of a speed-up that is printed without an interval."""
    return SAME if abs(value - 1) <= TOLERANCE else SLOWER if value < 1 else FASTER


def agreement(gain: Speedup, paper: float) -> str:
    """Whether a measured speed-up over the original says what the paper's does."""
    measured = direction(gain)
    if measured is None:
        return UNDECIDED
    return AGREES if measured == printed_direction(paper) else DISAGREES


def verdict_text(gain: Speedup, paper: float) -> str:
    """The agreement in words; of an undecided one with the reason."""
    verdict = agreement(gain, paper)
    if verdict != UNDECIDED:
        return VERDICT_NAMES[verdict]
    return f"{VERDICT_NAMES[verdict]}, {'too few runs' if gain['low'] is None else 'the interval allows both'}"


def step_seconds(timing: Timing) -> float:
    """Median seconds a new token: of a generation the prompt's pass is in it."""
    median = statistics.median(timing.seconds)
    return median if timing.kind == STEP else median / timing.new_tokens


def floor_seconds(evidence: Evidence, timing: Timing) -> float | None:
    """What a step's bytes need at the measured bandwidth: the weights once, and the cache of every sequence."""
    if not evidence.bandwidth:
        return None
    return step_bytes(timing) / evidence.bandwidth


def step_bytes(timing: Timing) -> float:
    """Bytes that one step reads: weights, and the cache rows up to the middle of the generation."""
    return timing.row.bytes_per_token + timing.batch * timing.position * timing.row.kv_bytes_per_position


def by_bytes(evidence: Evidence, timing: Timing) -> float | None:
    """The speed-up over the original that the bytes of a step predict."""
    original = evidence.rows.get((facts.ORIGINAL, None, "packed"))
    if original is None:
        return None
    original_bytes = original.bytes_per_token + timing.batch * timing.position * original.kv_bytes_per_position
    return original_bytes / step_bytes(timing)


def why(evidence: Evidence, timing: Timing) -> tuple[str, str]:
    """What the speed follows from, by the first rule that holds: a word for it, and the evidence.

    alignment: the same row with padded rows is faster. launches: the step takes twice what its bytes need or more, and
    its speed goes with the number of blocks. bytes: it is what the bytes predict. Else perhaps alignment, where the
    widths are no multiples of 8 and no padded row was timed, or none of these.
    """
    gain, predicted, floor = timing.gain, by_bytes(evidence, timing), floor_seconds(evidence, timing)
    if gain is None or predicted is None:
        return "unknown", "the original was not timed beside it"
    share = gain["median"] / predicted
    padded = _other_layout(evidence, timing)
    better = None if padded is None else step_seconds(timing) / step_seconds(padded)
    if better is not None and better > 1 + TOLERANCE:
        return "alignment", f"with rows that start on 64 bytes {better:.2f} times as fast, {predicted:.2f}x by bytes"
    over = None if floor is None else step_seconds(timing) / floor
    blocks = evidence.rows[facts.ORIGINAL, None, "packed"].blocks / timing.row.blocks
    if over is not None and over >= LAUNCH_BOUND and abs(gain["median"] / blocks - 1) <= TOLERANCE:
        return "launches", f"a step takes {over:.1f} times what its bytes need, {blocks:.2f}x by the number of blocks"
    if abs(share - 1) <= TOLERANCE:
        return "bytes", f"{predicted:.2f}x by bytes"
    slower = f"{1 - share:.0%} short of {predicted:.2f}x by bytes"
    if share > 1:
        return "none", f"{share - 1:.0%} above {predicted:.2f}x by bytes"
    if better is None and timing.row.divisor is not None and timing.row.divisor < 8:
        return "perhaps alignment", f"{slower}, its widths no multiples of 8"
    return "none", slower


REASONS = {
    "bytes": "It follows the bytes of a step",
    "launches": "It is launch-bound: time goes with the number of blocks, and fewer bytes alone make nothing faster",
    "alignment": "It is the alignment of the weights' rows",
    "perhaps alignment": "It may be alignment: no row with padded strides was timed under this engine",
    "none": "Bytes, launches and alignment do not explain it",
    "unknown": "The cause is not known",
}


def _other_layout(evidence: Evidence, timing: Timing) -> Timing | None:
    row = timing.row
    if row.layout != "packed":
        return None
    return evidence.timing(row.method, row.ratio, timing.engine, timing.kind, timing.batch, "padded")


def findings(evidence: Evidence) -> dict[str, list[str]]:
    """Sentences under their headings; of a dry run only that it is one."""
    if evidence.dry_run:
        notice = (
            "This is a dry run on a CPU in tiny sizes: it shows that the scripts run. Nothing here was measured, and "
            "nothing is said about the paper."
        )
        return {"What this is": [notice]}
    sections = {
        "What was measured": [*_sample(evidence), *_missing(evidence)],
        "Speed-ups over the original, and the paper's": [*_tally(evidence), *_speeds(evidence)],
        "Width against depth at equal bytes": list(_equal_bytes(evidence)),
        "The compiled peer": list(_peers(evidence)),
        "Memory": list(_memory(evidence)),
        "Which alignment matters": list(_alignment(evidence)),
    }
    return {heading: sentences for heading, sentences in sections.items() if sentences}


def _sample(evidence: Evidence) -> Iterator[str]:
    rate = "" if not evidence.bandwidth else f", {evidence.bandwidth / 1e12:.2f} TB/s measured"
    model = facts.MODELS[evidence.model]
    beside = paper_gpu(evidence)
    gpu_note = "" if beside in evidence.device else f" The paper's numbers are those of its {beside}, another GPU."
    sources = ", ".join(evidence.sources)
    yield f"{model}'s sizes with random weights on {evidence.device}{rate}; from {sources}.{gpu_note}"
    too_few_runs = {(timing.kind, timing.engine) for timing in evidence.timings} - {
        (timing.kind, timing.engine) for timing in evidence.timings if len(timing.seconds) >= FEW_RUNS
    }
    for kind, engine in WAYS:
        if (kind, engine) in too_few_runs:
            yield (
                f"{WAY_NAMES[kind, engine]}: fewer than {FEW_RUNS} runs, too few for a 95 % interval, so what they say "
                "about the paper is undecided."
            )


def _compared(evidence: Evidence) -> Iterator[tuple[str, str, str, Timing, float]]:
    """Kind, engine, ratio, timing and the paper's speed-up of every row at batch 1 that both have."""
    for kind, engine in WAYS:
        for ratio in facts.ratios(evidence.model):
            for method in facts.METHODS:
                timing = evidence.timing(method, ratio, engine, kind)
                paper = facts.speedup(evidence.model, ratio, method, paper_gpu(evidence))
                if timing is not None and timing.gain is not None and paper is not None:
                    yield kind, engine, ratio, timing, paper


def _tally(evidence: Evidence) -> Iterator[str]:
    verdicts = [agreement(timing.gain, paper) for *_, timing, paper in _compared(evidence) if timing.gain]
    if verdicts:
        counts = ", ".join(f"{verdicts.count(verdict)} {word}" for verdict, word in VERDICTS.items())
        yield f"Of {len(verdicts)} speed-ups at batch 1 that the paper has too: {counts}."


def _speeds(evidence: Evidence) -> Iterator[str]:
    groups: dict[tuple[str, str, str, str, str], list[str]] = {}
    for kind, engine, ratio, timing, paper in _compared(evidence):
        assert timing.gain is not None
        cause, explanation = why(evidence, timing)
        key = (kind, engine, ratio, verdict_text(timing.gain, paper), cause)
        groups.setdefault(key, []).append(
            f"{facts.NAMES[timing.row.method]} {gain_text(timing)}, paper {paper:.2f}x ({explanation})"
        )
    for (kind, engine, ratio, verdict, cause), rows in groups.items():
        yield f"{WAY_NAMES[kind, engine]}, {ratio}, {verdict}: {'; '.join(rows)}. {REASONS[cause]}."


def gain_text(timing: Timing) -> str:
    """The speed-up over the original, with its interval where there is one."""
    gain = timing.gain
    assert gain is not None
    interval = "" if gain["low"] is None else f" ({gain['low']:.2f} to {gain['high']:.2f})"
    return f"{gain['median']:.2f}x{interval}"


def _equal_bytes(evidence: Evidence) -> Iterator[str]:
    """The mission's question, a sentence a way, batch and layout: is width as fast as depth at equal bytes?"""
    for kind, engine in WAYS:
        for batch in evidence.batches():
            for layout in ("packed", "padded", "64"):
                speeds: dict[str, dict[str, Speedup]] = {}
                for ratio in facts.ratios(evidence.model):
                    depth = evidence.timing("depth", ratio, engine, kind, batch)
                    for method in facts.METHODS[1:]:
                        width = evidence.timing(method, ratio, engine, kind, batch, layout)
                        if depth is not None and depth.gain and width is not None and width.gain:
                            speeds.setdefault(ratio, {})[method] = relative_speed(evidence, width, depth)
                if speeds:
                    yield _equal_sentence(evidence, speeds, batch, layout, WAY_NAMES[kind, engine])


def relative_speed(evidence: Evidence, width: Timing, depth: Timing) -> Speedup:
    """A width row's speed over the depth row's, each over what its bytes predict: 1 is as fast at equal bytes.

    Both count as speed-ups over the original of their round. From one file they are paired round by round; from two
    there is no interval, only the ratio of their medians.
    """
    width_by_bytes, depth_by_bytes = by_bytes(evidence, width), by_bytes(evidence, depth)
    assert width_by_bytes is not None
    assert depth_by_bytes is not None
    widths = [gain / width_by_bytes for gain in width.round_gains]
    depths = [gain / depth_by_bytes for gain in depth.round_gains]
    if width.source != depth.source:
        return speedup([statistics.median(widths)], [statistics.median(depths)])
    rounds = min(len(widths), len(depths))
    return speedup(widths[:rounds], depths[:rounds])


def _equal_sentence(
    evidence: Evidence, speeds: dict[str, dict[str, Speedup]], batch: int, layout: str, way: str
) -> str:
    listed = "; ".join(
        f"{ratio}: {', '.join(f'{facts.NAMES[method]} {_speed_text(speed)}' for method, speed in by_method.items())}"
        for ratio, by_method in speeds.items()
    )
    verdict = _counts([speed for by_method in speeds.values() for speed in by_method.values()])
    gpu, paper = paper_gpu(evidence), ""
    if batch == 1:
        values = [
            width / depth
            for ratio, by_method in speeds.items()
            for method in by_method
            if (width := facts.speedup(evidence.model, ratio, method, gpu))
            and (depth := facts.speedup(evidence.model, ratio, "depth", gpu))
        ]
        paper = f" In the paper, at nearly equal bytes: {min(values):.2f} to {max(values):.2f}." if values else ""
    rows = {"packed": "packed rows", "padded": "padded strides", "64": "widths of multiples of 64"}[layout]
    return f"{way}, batch {batch}, {rows}: {verdict} (speed over depth's, each over its bytes: {listed}).{paper}"


def _counts(speeds: Sequence[Speedup]) -> str:
    """In how many rows width is slower than depth, as fast, faster, or undecided."""
    directions = [direction(speed) for speed in speeds]
    counts = [f"{word} in {directions.count(word)}" for word in (SLOWER, SAME, FASTER) if word in directions]
    bare = sum(speed["low"] is None for speed in speeds)
    if undecided := directions.count(None):
        counts.append(f"undecided in {undecided}{f', of which {bare} without an interval' if bare else ''}")
    return f"against depth, width is {', '.join(counts)}"


def _speed_text(speed: Speedup) -> str:
    interval = "" if speed["low"] is None else f" ({speed['low']:.2f} to {speed['high']:.2f})"
    return f"{speed['median']:.2f}{interval}"


def _peers(evidence: Evidence) -> Iterator[str]:
    for result in evidence.peers:
        for line in result["timings"]:
            gain = line.get("speedup")
            if gain is None:
                continue
            share = "" if "share" not in line else f" (ours at {line['share']['pyprune']:.0%} of the bandwidth)"
            interval = "" if gain["low"] is None else f" ({gain['low']:.2f} to {gain['high']:.2f})"
            yield (
                f"{result['layers']} layers compiled by torch.compile ({line['mode']}) in one CUDA graph, batch "
                f"{line['batch']}: ours run at {gain['median']:.2f}x{interval} of their speed{share}."
            )
        for key, reason in result["absent"].items():
            yield f"The compiled layer ({key}) is absent: {reason}."


def _memory(evidence: Evidence) -> Iterator[str]:
    for engine in ("hf", "pyprune"):
        ratios = []
        for cell in facts.memories():
            peak = peak_of(evidence, cell, engine)
            if cell.model == evidence.model and cell.gb is not None and peak is not None and peak.bytes is not None:
                ratios.append(peak.bytes / 2**30 / cell.gb)
        if ratios:
            far = sum(abs(ratio - 1) > MEMORY_TOLERANCE for ratio in ratios)
            word = "agrees with" if not far else f"is more than {MEMORY_TOLERANCE:.0%} from the paper in {far} of"
            yield (
                f"Memory under {'Hugging Face' if engine == 'hf' else 'pyprune'} {word} "
                f"{'Table 9' if not far else f'{len(ratios)} cells of Table 9'}: {min(ratios):.2f} to "
                f"{max(ratios):.2f} of the paper's."
            )


def peak_of(evidence: Evidence, cell: facts.Memory, engine: str) -> Peak | None:
    """What was measured for a cell of Table 9."""
    method = facts.ORIGINAL if cell.ratio is None else "depth"
    key = ((method, cell.ratio, "packed"), engine, cell.batch, cell.output_tokens)
    peaks = [peak for peak in evidence.peaks if (peak.row, peak.engine, peak.batch, peak.new_tokens) == key]
    return peaks[-1] if peaks else None


def _alignment(evidence: Evidence) -> Iterator[str]:
    for sweep in evidence.sweeps:
        measured = alignments(sweep["points"], sweep["hidden"])
        for side in dict.fromkeys(alignment.side for alignment in measured):
            of_side = sorted(
                (alignment for alignment in measured if alignment.side == side),
                key=lambda alignment: (alignment.rows, alignment.role),
            )
            needs = [alignment for alignment in of_side if alignment.needed > 1]
            listed = "; ".join(
                f"{alignment.role} at M = {alignment.rows}: multiples of {alignment.needed} "
                f"(others up to {alignment.worst:.2f}x as long)"
                for alignment in needs
            )
            free = ", ".join(
                f"{alignment.role} at M = {alignment.rows}" for alignment in of_side if alignment.needed == 1
            )
            yield (
                f"{side}: "
                + ". ".join(
                    filter(
                        None, (f"matters for {listed}" if listed else "", f"none matters for {free}" if free else "")
                    )
                )
                + "."
            )
        if not sweep["finished"]:
            yield f"The width sweep ended after {len(sweep['points'])} points; the widths between them are missing."


def _missing(evidence: Evidence) -> Iterator[str]:
    for kind, engine in WAYS:
        rows = [(None, facts.ORIGINAL), *((r, m) for r in facts.ratios(evidence.model) for m in facts.METHODS)]
        missing = [
            f"{facts.NAMES[method]}{f' {ratio}' if ratio else ''}"
            for ratio, method in rows
            if evidence.timing(method, ratio, engine, kind) is None
        ]
        if len(missing) == len(rows):
            yield f"{WAY_NAMES[kind, engine]}: no row was measured."
        elif missing:
            yield f"{WAY_NAMES[kind, engine]}: not measured: {', '.join(missing)}."
    yield from (f"Not whole: {line}." for line in evidence.incomplete)
