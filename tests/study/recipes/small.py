"""A recipe that runs in seconds on a made-up model, and rows that its tests add."""

SMALL = """
title = "Small"
shows = "Blocks against FLAP."

[paper]
setup = "another model"
where = { model = "llama-7b" }

[measures]
perplexity = true
memory = { batches = [1], output_tokens = [8], input_tokens = 4 }
scores = ["ppl", "magnitude"]

[budget.quick]
samples = 2
seq_len = 8
tokens = 48
window = 8
steps = 1
round_steps = 1
batch = 2
micro_batch = 2
cutoff = 8
held_out = { novel = "given", other = "given" }

[[models]]
name = "Original"
x = 0

[[models]]
name = "Blocks {ratio}"
each = { ratio = ["25%", "45%"] }
prune = { method = "depth", amount = "{ratio}" }
group = "{ratio}"
series = "blocks"
x = "{ratio}"
paper = { ratio = "20%", method = "depth", criterion = "ppl" }

[[models]]
name = "FLAP 25%"
prune = { method = "flap", amount = "25%" }
group = "25%"
series = "FLAP"
x = 25
paper = { ratio = "20%", method = "flap" }

[[models]]
name = "Trained 25%"
prune = { method = "depth", amount = "25%" }
retrain = true
group = "25%"
series = "trained"
x = 25

[[columns]]
value = "parameters"

[[columns]]
value = "ppl"
paper = "quality:ppl_wikitext2"

[[columns]]
value = "memory:8x1"

[figure]
kind = "lines"
y = ["ppl"]
x = "Removed (%)"

[[claims]]
text = "Pruning takes less memory."
value = "memory:8x1"
rows = "Blocks|FLAP"
relation = "lower"
than = "Original"
"""

ITERATIVE = """
[[models]]
name = "Iterative {count}"
each = { count = [1, 2] }
prune = { method = "depth", search = "iterative", amount = "{count}" }
retrain = true
series = "iterative"
x = "{count}"
"""


def iterative(folder):
    """A recipe of two rows of an iterative pruning."""
    file = folder / "iterative.toml"
    text = SMALL.replace("memory = { batches = [1], output_tokens = [8], input_tokens = 4 }\n", "")
    text = text[: text.index('[[models]]\nname = "Blocks')] + ITERATIVE + text[text.index("[[columns]]") :]
    text = text.replace('[[columns]]\nvalue = "memory:8x1"\n', "")
    file.write_text(text[: text.index("[[claims]]")])
    return file
