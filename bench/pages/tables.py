"""The tables of docs/benchmarks.md and of the README, each from the files that it names."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from bench.pages.results import COMPARISON, DECODING, REPAIRED, cases, ratio, read, table
from pyprune.study.measure import speedup

HF_EAGER, HF_COMPILED, LLAMA = "HF eager", "HF compiled", "llama.cpp"


def depth_and_width(name: str = COMPARISON, batch: int | None = None) -> str:
    """Depth against width at the same size: perplexity, and one ratio of speed."""
    from pyprune.study.labels import is_checkpoint, unpadded
    from pyprune.study.table import measured

    results = read(name)
    lines = [line for line in measured(results) if line["engine"] == "pyprune"]
    batch = batch or min(line["batch"] for line in lines)
    quality = {row["name"]: row.get("ppl") for row in results["rows"]}
    rows = []
    for line in lines:
        if line["batch"] != batch or unpadded(line["method"]) != line["method"] or is_checkpoint(line["method"]):
            continue
        row = line["row"]
        speed = {"median": line["speedup"], "low": line["speedup_low"], "high": line["speedup_high"]}
        rows.append(
            [
                row,
                f"{line['bytes_per_token'] / 1e6:.0f}",
                perplexity(quality[row]),
                f"{line['tokens_per_s']:.0f}",
                "1x" if line["method"] == "original" else ratio(speed),
            ]
        )
    return table(["SmolLM2-135M", "MB/token", "PPL", "tokens/s", "speed-up"], rows)


def repaired_and_retrained(name: str = REPAIRED) -> str:
    """Depth against width at the same size, for the README: perplexity as pruned, repaired and retrained, and one ratio
    of speed, from examples/repair_and_retrain.toml. The text is the plot's: BoolQ passages."""
    by_name = {row["name"]: row for row in read(name)["rows"]}

    def quality(row: str) -> str:
        return perplexity(by_name[row]["values"]["ppl:boolq"]) if row in by_name else ""

    rows = []
    for row, result in by_name.items():
        if row.endswith(("repaired", "retrained", "without repair")):
            continue
        values, low_high = result["values"], result["intervals"].get("speedup") or (None, None)
        speed = {"median": values["speedup"], "low": low_high[0], "high": low_high[1]}
        rows.append(
            [
                row,
                f"{values['bytes_per_token'] / 1e6:.0f}",
                quality(row),
                quality(f"{row} repaired"),
                quality(f"{row} retrained"),
                f"{values['tokens_per_s']:.0f}",
                "1x" if result["removed"] is None else ratio(speed),
            ]
        )
    return table(["SmolLM2-135M", "MB/token", "PPL", "repaired", "retrained", "tokens/s", "speed-up"], rows)


def accuracies(name: str) -> str:
    """Perplexity beside the accuracy on each task, in percent, of a comparison's rows; padded ones are the same."""
    from pyprune.study.evaluations.accuracy import HEADERS, mean_accuracy, metric_of
    from pyprune.study.labels import unpadded

    results = read(name)
    rows = []
    for row in results["rows"]:
        if unpadded(row["method"]) != row["method"]:
            continue
        values = [row["accuracy"][task][metric_of(task)] for task in HEADERS]
        mean = mean_accuracy(row["accuracy"])
        assert mean is not None
        rows.append(
            [
                row["name"],
                perplexity(row["ppl"]),
                f"{100 * mean[0]:.1f} ± {100 * mean[1]:.1f}",
                *(f"{100 * value:.1f}" for value in values),
            ]
        )
    return table(["SmolLM2-135M", "PPL", "mean accuracy, %", *HEADERS.values()], rows)


def distillation_memory(name: str) -> str:
    """Peak memory of training by loss, and its ratio to that without a teacher."""
    titles = {"none": "LoRA alone", "forward-kl": "forward KL", "reverse-kl": "reverse KL", "hidden": "hidden states"}
    rows = []
    for loss, measured in read(name)["losses"].items():
        own = measured["peak"] - (0 if loss == "none" else measured["teacher"])
        rows.append([titles[loss], f"{own / 1e9:.2f}", f"{measured.get('ratio', 1.0):.2f}x"])
    return table(["training", "GB", "of LoRA alone"], rows)


def perplexity(value: float | None) -> str:
    """To three digits."""
    return "" if value is None else f"{value:.4g}" if value >= 1000 else f"{value:.3g}"


def decoding(name: str = DECODING) -> str:
    """Tokens/s beside the peers, for the README."""
    rows = []
    for case in cases(name):
        rates = case["tokens_per_second"]
        peers = [f"{rates[peer]:.0f}" if peer in rates else "absent" for peer in (LLAMA, HF_EAGER)]
        rows.append(
            [
                str(case["batch"]),
                f"{rates['pyprune']:.0f}",
                *peers,
                *(ratio(case["ratio"].get(p)) for p in (LLAMA, HF_EAGER)),
            ]
        )
    return table(["batch", "pyprune", "llama.cpp", "HF, uncompiled", "over llama.cpp", "over HF, uncompiled"], rows)


def decoding_in_full(name: str) -> str:
    """Every peer, compressed weights, and the share of the read limit."""
    rows = []
    for case in cases(name):
        rates, small = case["tokens_per_second"], case["ratio_to_compressed"]
        step_bytes = case["decode_steps"] * case["bytes_per_token"]["pyprune"]
        share = case["ratio"]["memory read"]["median"] * step_bytes / case["read_bytes"]
        rows.append(
            [
                str(case["batch"]),
                f"{rates['pyprune']:.1f}",
                *(ratio(case["ratio"].get(peer)) for peer in (LLAMA, HF_EAGER, HF_COMPILED)),
                f"{rates['pyprune, compressed']:.1f}" if "pyprune, compressed" in rates else "",
                ratio(small.get(LLAMA)),
                f"{share:.0%}",
            ]
        )
    header = [
        "batch", "pyprune, tokens/s", "over llama.cpp", "over HF eager", "over HF compiled", "compressed, tokens/s",
        "compressed over llama.cpp", "of the read limit",
    ]  # fmt: skip
    return table(header, rows)


def compressed(name: str) -> str:
    """How much faster a step is with compressed weights."""
    rows: dict[int, dict[str, str]] = defaultdict(dict)
    for case in cases(name):
        rows[case["batch"]][case["params"]["model"]] = ratio(case["ratio"]["as they are"])
    return table(
        ["batch", "SmolLM2-135M", "shape:llama-1b"],
        [[str(batch), row.get("smollm2", ""), row.get("llama_1b", "")] for batch, row in sorted(rows.items())],
    )


def accelerated(name: str) -> str:
    """`model.generate` after `accelerate`, over before."""
    rows = []
    for case in cases(name):
        tokens = case["batch"] * case["new_tokens"]
        speeds = [f"{tokens / median(case['seconds'][side]):.1f}" for side in ("pyprune.accelerate", "transformers")]
        rows.append([str(case["batch"]), *speeds, ratio(case["ratio"]["transformers"])])
    return table(["batch", "accelerated, tokens/s", "transformers, tokens/s", "speed-up"], rows)


def prompts(*names: str) -> str:
    """Time to the first token, and how much faster than the peers."""
    rows = []
    for name in names:
        for case in cases(name, "test_prompts"):
            peers = ("pyprune, torch's GEMM", HF_EAGER, LLAMA)
            rows.append(
                [
                    case["dtype"],
                    f"{case['batch']} x {case['prompt_tokens']}",
                    f"{1000 * median(case['seconds']['pyprune']):.0f}",
                    *(ratio(case["ratio"].get(peer)) for peer in peers),
                ]
            )
    return table(["dtype", "prompts x tokens", "ms", "over torch's GEMM", "over HF eager", "over llama.cpp"], rows)


def scoring(*sources: tuple[str, str, str]) -> str:
    """Rows of (what, file, test): seconds, and over the naive loops."""
    rows = []
    for what, name, test in sources:
        (case,) = cases(name, test)
        loops = {key: case["ratio"].get(key) for key in ("naive batched loop", "batched", "naive", "batch 1")}
        batched = next((value for key, value in loops.items() if value and key != "batch 1"), None)
        rows.append([what, f"{median(case['seconds']['pyprune']):.1f}", ratio(batched), ratio(loops["batch 1"])])
    return table(["work", "s", "over the batched loop", "over the loop at batch 1"], rows)


def tasks(*names: str) -> str:
    """lm-eval's tasks beside lm-eval's own model, with its best batch size."""
    rows = []
    for name in names:
        for case in cases(name):
            own = f"{median(case['seconds']['pyprune']):.1f}"
            peers = [ratio(case["ratio"][peer]) for peer in ("hf", "hf, accelerated")]
            bound = f"{case['bound_by_sharing']:.2f}x"
            rows.append([case["dtype"], case["task"], str(case["documents"]), own, *peers, bound])
    header = ["dtype", "task", "documents", "s", "over lm-eval's `hf`", "over `hf` accelerated", "from sharing alone"]
    return table(header, rows)


def training(*names: str) -> str:
    """Tokens a second of LoRA training beside peft with plain transformers."""
    rows = []
    for name in names:
        for case in cases(name):
            rates = [f"{case['tokens'] / median(case['seconds'][side]):.0f}" for side in ("pyprune", "peft")]
            difference = f"{case['largest_relative_difference']:.0e}"
            how = [case["precision"], case["instruction_set"]]
            rows.append([*how, *rates, ratio(case["ratio"]["peft"]), difference])
    headers = ["precision", "instruction set", "pyprune, tokens/s", "peft, tokens/s", "over peft"]
    return table([*headers, "loss difference over 20 steps"], rows)


def scoring_memory(name: str) -> str:
    """Peak memory above the weights, beside the plan and the logits that are never stored."""
    rows = []
    for case in cases(name, "test_peak_memory"):
        work = {"score": "score", "greedy": "greedy search"}[case["params"]["work"]]
        megabytes = [f"{case[key] / 1e6:.0f}" for key in ("measured", "planned", "logits")]
        rows.append([work, f"{case['params']['samples']} x {case['params']['tokens']}", *megabytes])
    return table(["work", "samples x tokens", "measured, MB", "planned, MB", "full logits, MB"], rows)


def read_limit(*names: str) -> str:
    """A step of the 1B shape against a plain read of as many bytes, in runs at different rates of the memory."""
    rows = []
    for name in names:
        (case,) = cases(name, "test_llama_1b_against_the_read_limit")
        step_bytes = case["decode_steps"] * case["bytes_per_token"]
        share = case["ratio"]["memory read"]["median"] * step_bytes / case["read_bytes"]
        rate = f"{case['read_bytes_per_second'] / 1e9:.0f}"
        rows.append([rate, f"{share:.0%}", ratio(case["ratio"]["batch 4"])])
    header = ["memory, GB/s", "batch 1, of the read limit", "step time, batch 4 over 1"]
    return table(header, sorted(rows, key=lambda row: int(row[0])))


def by_bytes(name: str) -> str:
    """Odd widths and skipped blocks: measured time against what bytes predict."""
    rows = []
    (odd,) = cases(name, "test_odd_widths_cost_their_bytes")
    sizes = odd["bytes_per_token"]
    for width in list(odd["seconds"])[1:]:
        predicted = sizes[width] / sizes["1536"]
        rows.append([f"FFN width {width}", f"{predicted:.3f}", f"{odd['ratio'][width]['median']:.3f}"])
    for case in cases(name, "test_skipped_blocks_save_their_bytes"):
        model = {"smollm2": "SmolLM2", "llama_1b": "shape:llama-1b"}[case["params"]["model"]]
        for skipped, share in case["share_of_bytes"].items():
            rows.append([f"{model}, {skipped}", f"{1 - share:.3f}", f"{case['ratio'][skipped]['median']:.3f}"])
    return table(["change", "time predicted by bytes", "time measured"], rows)


def widths_of_table_1(name: str) -> str:
    """Every width of the paper's Table 1: medians over the widths."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for case in cases(name):
        groups[case["rows"]].append(case)
    rows = []
    for count, members in sorted(groups.items()):
        predicted = [case["of_predicted"]["padded"]["median"] for case in members]
        worse = sum((case["of_predicted"]["padded"]["low"] or 0) > 1.03 for case in members)
        over = [case["ratio"]["torch"]["median"] for case in members]
        spans = [f"{median(values):.2f}x ({min(values):.2f} to {max(values):.2f})" for values in (predicted, over)]
        rows.append([str(count), str(len(members)), spans[0], str(worse), spans[1]])
    return table(
        ["rows", "widths", "time over the aligned neighbour's prediction", "measurably over 1.03x", "over torch"], rows
    )


def attention(name: str) -> str:
    """Attention of many tokens against torch's SDPA."""
    rows = []
    for case in cases(name):
        values = case["params"]
        rows.append(
            [
                values["low"],
                f"{values['batch']} x {values['tokens']}",
                str(values["before"]),
                ratio(case["ratio"]["SDPA"]),
            ]
        )
    return table(["dtype", "sequences x tokens", "cached before", "over SDPA"], rows)


def loading(name: str) -> str:
    """Loading a quantised GGUF file as bf16."""
    rows = []
    for case in cases(name):
        seconds = [f"{case['load_spread'][side]['median']:.1f}" for side in ("pyprune", "gguf")]
        peaks = [f"{case['peak_over_weights'][side]:.2f}x" for side in ("pyprune", "gguf")]
        rows.append([case["params"]["model"], *seconds, *peaks])
    return table(
        ["model", "pyprune, s", "gguf package, s", "pyprune, peak over weights", "gguf package, peak over weights"],
        rows,
    )


def huge_pages(name: str) -> str:
    """A decode step with weights on huge pages."""
    return table(["batch", "speed-up"], [[str(c["batch"]), ratio(c["ratio"]["the allocator's"])] for c in cases(name)])


def amx(name: str) -> str:
    """AMX against AVX-512-BF16, medians of the rounds after the first."""
    data = read(name)
    rows = []
    for what, key, unit in (("4096 x 4096 linear, rows", "linear", 1e6), ("1B shape's step, batch", "decode", 1e3)):
        for count, sides in data[key].items():
            pair = [median(sides[side][1:]) for side in ("amx", "avx512_bf16")]
            suffix = "us" if unit == 1e6 else "ms"
            rows.append([f"{what} {count}", *(f"{unit * value:.0f} {suffix}" for value in pair)])
    return table(["what", "AMX", "AVX-512-BF16"], rows)


def gpu_decoding(*names: str) -> str:
    """A decode step on the GPU and generations beside Hugging Face."""
    rows = []
    for run, name in names_of_runs(names):
        for part in read(name)["parts"]:
            if not part["name"].startswith("decode") or not part["result"].get("timings"):
                continue
            for timing in part["result"]["timings"]:
                if "pyprune_step_seconds" not in timing:
                    continue
                model = timing["model"].removeprefix("shape:")
                step = f"{1000 * timing['pyprune_step_seconds']:.2f}"
                rows.append(
                    [
                        run,
                        model,
                        str(timing["batch"]),
                        step,
                        f"{timing['pyprune_share']:.0%}",
                        ratio(timing.get("speedup")),
                    ]
                )
    return table(["run", "shape", "batch", "ms a step", "of the memory's rate", "`generate` over HF eager"], rows)


def gpu_scoring(*names: str) -> str:
    """Scoring all blocks of LLaMA-7B's shape on the GPU."""
    rows = []
    for run, name in names_of_runs(names):
        for part in read(name)["parts"]:
            if part["name"].startswith("scoring") and part["result"].get("seconds"):
                seconds = part["result"]["seconds"]
                pair = [f"{median(seconds[side]):.2f}" for side in ("pyprune", "naive")]
                rows.append([run, *pair, ratio(speedup(seconds["naive"], seconds["pyprune"]))])
    return table(["run", "pyprune, s", "batched loop, s", "speed-up"], rows)


def names_of_runs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each file with a link to it as its name."""
    return [(f"[{name.split('-')[3]}](../bench/results/{name})", name) for name in names]
