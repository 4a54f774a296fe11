"""docs/benchmarks.md: every figure that the documentation has, each from one committed result."""

from __future__ import annotations

from bench.pages import recovery, tables
from bench.pages.results import COMPARISON, COMPARISON_BY_TASKS, DECODING, RESULTS, link, machine

ACCELERATE = "accelerate-smollm2-bf16-2core-zen4.json"
AMX = "instruction-sets-bf16-16core-amx.json"
ATTENTION = "attention-many-tokens-2core-zen4.json"
AVX2 = "decode-peers-smollm2-bf16-avx2-only-2core-zen4.json"
CANDIDATES = "scoring-candidates-smollm2-fp32-2core-zen4.json"
CANDIDATES_AVX2 = "scoring-candidates-smollm2-fp32-avx2-only-2core-zen4.json"
COMPRESSED = "compressed-weights-bf16-2core-zen4.json"
FP16, FP32 = "decode-peers-smollm2-fp16-2core-zen4.json", "decode-peers-smollm2-fp32-2core-zen4.json"
GPU = ("gpu-check-h100-2-decode-scoring.json", "gpu-check-h100-3-layouts-chosen.json")
HUGE_PAGES = "huge-pages-smollm2-bf16-2core-zen4.json"
LIMITS = "decode-limits-2core-zen4.json"
LOADING = "load-gguf-bf16-2core-zen4.json"
PREFILL = ("prefill-smollm2-bf16-2core-zen4.json", "prefill-smollm2-fp16-2core-zen4.json")
READ_LIMITS = tuple(
    f"decode-limits-llama-1b-2core-zen4{end}.json" for end in ("-at-40gbs", "", "-at-52gbs", "-at-58gbs")
)
SCORING = "scoring-smollm2-fp32-2core-zen4.json"
SCORING_ANY = "scoring-any-decoder-fp32-2core-zen4.json"
SCORING_BF16 = "scoring-gemms-smollm2-bf16-2core-zen4.json"
SCORINGS = (SCORING, SCORING_BF16, CANDIDATES, CANDIDATES_AVX2, SCORING_ANY)
SCORING_MEMORY = "scoring-memory-smollm2-fp32-2core-zen4.json"
WIDTHS, WIDTHS_NO_BF16 = "padded-linear-bf16-2core-zen4.json", "padded-linear-bf16-no-bf16-units-2core-zen4.json"
TASKS = ("tasks-smollm2-bf16-2core-zen4.json", "tasks-smollm2-fp32-2core-zen4.json")
DISTILLATION_MEMORY = "distillation-memory-smollm2-fp32-2core-zen4.json"
TRAINING = tuple(f"training-smollm2-{run}.json" for run in ("bf16-2core-zen4", "fp32-2core-zen4", "fp32-2core-zen3"))
SWEEP = "sweep-7000-7300-bf16-2core-zen4.json"


def page() -> str:
    """The whole page."""
    text = f"""<!-- Written by `make docs` from bench/results/. Do not edit. -->
# Benchmarks

`make docs` writes this page from the linked samples. The sides of a comparison ran interleaved. A ratio is the median
of paired ratios: **bold** if its 95 % interval excludes one, `~` if not, `*` without interval (too few rounds). *Of the
read limit*: the time of a plain read of the step's weights, as a share of the step.

Unless stated otherwise, the machine is virtual: {machine(DECODING)}. Its bandwidth varies, so compare ratios, not
speeds. [bench/README.md](../bench/README.md) describes the peers.

## Depth against width

SmolLM2-135M in bf16, batch 1, neither repaired nor retrained unless a column says so ({link(COMPARISON)}):

```bash
pyprune compare smollm2-135m --ratios 20% --methods wanda-sp,flap,llm-pruner --batch 1,8 --out comparison
```

{tables.depth_and_width()}

The same models on the paper's tasks ({link(COMPARISON_BY_TASKS)}):

```bash
pyprune compare smollm2-135m --ratios 20% --methods wanda-sp,flap,llm-pruner --tasks paper --limit 200 --out by-tasks
```

{tables.accuracies(COMPARISON_BY_TASKS)}

Of the pruned models, depth has the lowest perplexity, yet FLAP answers as well: the means lie within two standard
errors. On BoolQ and WinoGrande even the original does no better than guessing. Wanda-sp is near chance.

## Decoding

SmolLM2-135M, 64 decode steps after prompts of 12 tokens.

```bash
make bench-peers
make bench-peers ARGS="-k fp16"
make bench-peers ARGS="-k fp32"
make bench ARGS="-k compressed"
make bench ARGS="-k huge"
python -m pytest bench/test_accelerate.py --benchmark-enable
```

bf16 ({link(DECODING)}):

{tables.decoding_in_full(DECODING)}

float16 ({link(FP16)}):

{tables.decoding_in_full(FP16)}

float32 ({link(FP32)}):

{tables.decoding_in_full(FP32)}

bf16 with AVX2 only, as on most laptops ({link(AVX2)}):

{tables.decoding_in_full(AVX2)}

Speed-up from `bf16-lossless12` weights ({link(COMPRESSED)}):

{tables.compressed(COMPRESSED)}

Transformers' `generate` after `pyprune.accelerate`, bf16 ({link(ACCELERATE)}):

{tables.accelerated(ACCELERATE)}

Speed-up from huge pages ({link(HUGE_PAGES)}):

{tables.huge_pages(HUGE_PAGES)}

## Prompts

Time from token ids to the first new token, SmolLM2-135M ({link(*PREFILL)}):

```bash
python -m pytest bench/test_prefill.py --benchmark-enable
python -m pytest bench/test_prefill.py --benchmark-enable -k attention
```

{tables.prompts(*PREFILL)}

Attention alone, SmolLM2's heads ({link(ATTENTION)}):

{tables.attention(ATTENTION)}

## Scoring

Against a loop of one forward pass per candidate ({link(*SCORINGS)}):

```bash
python -m pytest bench/test_scoring.py --benchmark-enable
python -m pytest bench/test_prefill.py --benchmark-enable -k scores
python -m pytest bench/test_candidates.py --benchmark-enable
python -m pytest bench/test_any_decoder.py --benchmark-enable
```

{
        tables.scoring(
            ("SmolLM2, 30 blocks, 10 x 128 tokens, float32", SCORING, "test_block_scores_against_the_naive_loops"),
            ("SmolLM2, greedy removal of 8 blocks, 2 x 128 tokens, float32", SCORING, "test_greedy_removal"),
            ("SmolLM2, 30 blocks, 4 x 128 tokens, bf16", SCORING_BF16, "test_scores"),
            ("SmolLM2, 360 alternatives of sublayers, 10 x 128 tokens, float32", CANDIDATES, "test_a_library"),
            ("the same, both sides with AVX2 only", CANDIDATES_AVX2, "test_a_library"),
            ("a model like Gemma 3, float32", SCORING_ANY, "test_block_scores_against_the_naive_batched_loop[gemma3"),
            ("a mixture of experts, float32", SCORING_ANY, "test_block_scores_against_the_naive_batched_loop[moe"),
        )
    }

Peak memory above the weights ({link(SCORING_MEMORY)}):

{tables.scoring_memory(SCORING_MEMORY)}

## Tasks

The paper's tasks in lm-eval, SmolLM2-135M ({link(*TASKS)}):

```bash
python -m pytest bench/test_tasks.py --benchmark-enable --documents=100 -k bf16
```

{tables.tasks(*TASKS)}

*From sharing alone*: the speed-up from reading shared contexts once.

## Training

LoRA on SmolLM2-135M without six blocks, batches of 4 x 256 tokens ({link(*TRAINING)}):

```bash
python -m pytest bench/test_training.py --benchmark-enable -k "not no-dropout"
```

{tables.training(*TRAINING)}

Peak memory with a bf16 teacher, without its weights ({link(DISTILLATION_MEMORY)}):

```bash
MALLOC_MMAP_THRESHOLD_=65536 python -m bench.distillation_memory smollm2-135m --ratio 20%
```

{tables.distillation_memory(DISTILLATION_MEMORY)}

## Decoding against the read limit

`shape:llama-1b` in bf16, at different bandwidths ({link(*READ_LIMITS)}):

```bash
make bench ARGS="-k limits"
```

{tables.read_limit(*READ_LIMITS)}

Step time with odd widths or skipped blocks, relative to the unchanged model ({link(LIMITS)}):

{tables.by_bytes(LIMITS)}

## Odd widths

A bf16 linear at every FFN width of the paper's Table 1, as up and as down projection ({link(WIDTHS)}). The prediction
scales the time at the next multiple of 64 by width.

```bash
python -m pytest bench/test_padded_linear.py --benchmark-enable
pyprune sweep --widths 7000:7300:4 --hidden 4096 --rows 1,8,64,1024 --dtype bf16 --out sweep
```

{tables.widths_of_table_1(WIDTHS)}

Both sides without AVX-512-BF16 ({link(WIDTHS_NO_BF16)}):

{tables.widths_of_table_1(WIDTHS_NO_BF16)}

Widths from 7000 to 7300 in steps of four, each timed at another moment: the scatter between neighbours is larger than
any effect of alignment, which the tables above measure in the same rounds ({link(SWEEP)}):

![Rates against the width, for torch, torch padded and pyprune](../bench/results/{SWEEP.replace(".json", ".png")})

## Loading

A Q4_K_M GGUF file, loaded as bf16 ({link(LOADING)}):

```bash
python -m pytest bench/test_load.py --benchmark-enable
```

{tables.loading(LOADING)}

## AMX

16 cores of an Intel Xeon, medians without intervals ({link(AMX)}):

```bash
python -m pytest bench/test_instruction_sets.py --benchmark-enable
```

{tables.amx(AMX)}

## On an H100

Random weights, bf16, two runs of `python -m bench.gpu_check`. The code has changed since. The host CPU limited Hugging
Face.

{tables.gpu_decoding(*GPU)}

Scoring all blocks of `shape:llama-7b` on 10 x 128 tokens:

{tables.gpu_scoring(*GPU)}

[What has been checked there](status.md), [predictions for other GPUs](../bench/NOTES.md).
"""
    return text + others(text)


def others(text: str) -> str:
    """Links to the results that no section uses, nor the page of repair and retraining."""
    text += recovery.page()
    unused = [file.name for file in sorted(RESULTS.iterdir()) if file.name not in text]
    if not unused:
        return ""
    return "\n## Other raw results\n\n" + "\n".join(f"- [{name}](../bench/results/{name})" for name in unused) + "\n"
