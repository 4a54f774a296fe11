"""The width methods written out as loops, apart from the package: what its selections are compared with.

`reference` is the fixture of that name: attention context, FFN activation and blocks. In float64 they are the
yardstick, in float32 they show what plain PyTorch makes of the same formula.
"""

import torch


def stream(decoder, ids, reference):
    """For each block of the unpruned model: itself, and the inputs of o and of down, `[samples, tokens, channels]`."""
    x = decoder.embedding.double()[ids]
    for block in decoder.blocks:
        context = activation = None
        if block.mha is not None:
            context = reference.context(block.mha, x, decoder.rope)
            x = x + reference.project(block.mha.o, context)
        if block.ffn is not None:
            activation = reference.activation(block.ffn, x)
            x = x + reference.project(block.ffn.down, activation)
        yield block, context, activation


def variance(x):
    """Over all tokens of all samples."""
    flat = x.flatten(0, 1)
    return ((flat - flat.mean(0)) ** 2).sum(0) / (len(flat) - 1)


def published_variance(x):
    """What FLAP's code has: its old mean is the new one (updated in place), and the first sample adds nothing."""
    mean, result = torch.zeros(x.shape[-1], dtype=torch.float64), torch.zeros(x.shape[-1], dtype=torch.float64)
    for n, sample in enumerate(x):
        old = mean
        mean *= n / (n + 1)
        mean += sample.mean(0) / (n + 1)
        if n == 0:
            continue
        result = result * (n - 1) / n + ((sample - mean) * (sample - old)).sum(0) / (n + 1)
    return result


def flap_channels(metric, weight, x, faithful):
    weight = weight.double()
    if metric == "WIFN":
        rms = (x.flatten(0, 1) ** 2).mean(0).sqrt()
        return (weight.abs() * rms).mean(0)
    fluctuation = published_variance(x) if faithful else variance(x)
    if metric == "IFV":
        return fluctuation
    return fluctuation * (weight**2).sum(0)


def flap_units(decoder, ids, reference, metric, adaptive, faithful):
    """(block, kind, place) -> score."""
    units = {}
    for block, context, activation in stream(decoder, ids, reference):
        channels = flap_channels(metric, block.mha.o.weight, context, faithful)
        if faithful:
            channels = channels**2
        neurons = flap_channels(metric, block.ffn.down.weight, activation, faithful)
        if adaptive:
            channels = (channels - channels.mean()) / channels.std()
            neurons = (neurons - neurons.mean()) / neurons.std()
        per_group = block.mha.heads // block.mha.kv_heads * block.mha.head_dim
        for group in range(block.mha.kv_heads):
            part = channels[group * per_group : (group + 1) * per_group]
            units[block.index, "groups", group] = float(part.mean() if adaptive else part.sum())
        for neuron in range(block.ffn.width):
            units[block.index, "neurons", neuron] = float(neurons[neuron])
    return units


def costs(decoder):
    """Parameters of one group and of one neuron of each block."""
    result = {}
    for block in decoder.blocks:
        mha, ffn = block.mha, block.ffn
        rows = [(mha.q, mha.heads), (mha.k, mha.kv_heads), (mha.v, mha.kv_heads)]
        attention = sum(n * mha.head_dim * (part.weight.shape[1] + (part.bias is not None)) for part, n in rows)
        attention += mha.o.weight.numel()
        neuron = sum(part.weight.shape[1] + (part.bias is not None) for part in (ffn.gate, ffn.up))
        result[block.index, "groups"] = attention // mha.kv_heads
        result[block.index, "neurons"] = neuron + ffn.down.weight.shape[0]
    return result


def best_within(units, cost, budget, slack, above=False):
    """The units that stay when all are ranked together: the best of each block and kind, then the best of the rest
    until the parameters come nearest to the budget; where that is off by more than `slack`, every one that fits."""
    firsts = {}
    for (block, kind, place), score in units.items():
        best = firsts.get((block, kind))
        if best is None or score >= units[block, kind, best]:
            firsts[block, kind] = place
    kept = {(block, kind, place) for (block, kind), place in firsts.items()}
    total = sum(cost[unit[:2]] for unit in kept)
    rest = sorted((unit for unit in units if unit not in kept), key=lambda unit: -units[unit])
    least, count, nearest = total, 0, abs(total - budget)
    for place, unit in enumerate(rest):
        total += cost[unit[:2]]
        if abs(total - budget) < nearest:
            nearest, count = abs(total - budget), place + 1
    best = rest[:count]
    if above and best:
        best = [unit for unit in best if units[unit] > units[best[-1]]]
    if abs(least + sum(cost[unit[:2]] for unit in best) - budget) > slack:
        best = []
        for unit in rest:
            if least + cost[unit[:2]] <= budget:
                best.append(unit)
                least += cost[unit[:2]]
    return kept | set(best)


def lowest(units, kind, block, removed):
    """Places of the `removed` lowest of one block."""
    places = [unit for unit in units if unit[0] == block and unit[1] == kind]
    return sorted(unit[2] for unit in sorted(places, key=lambda unit: units[unit])[:removed])


def gone(units, kept):
    """Removed groups and neurons by block, as a Pruning holds them."""
    result = {"groups": {}, "neurons": {}}
    for block, kind, place in units:
        if (block, kind, place) not in kept:
            result[kind].setdefault(block, []).append(place)
    return {kind: {block: tuple(sorted(places)) for block, places in one.items()} for kind, one in result.items()}


def sample_gradients(decoder, ids, reference, blocks, dtype=torch.float64):
    """For each sample, dL/dW of these blocks' projections by plain autograd; L is the sample's mean NLL."""
    decoder = decoder.map(lambda tensor: tensor.detach().to(dtype, copy=True))
    names, leaves = [], []
    for block in decoder.blocks:
        if block.index not in blocks:
            continue
        for name, tensor in block.tensors():
            if name.endswith("weight"):
                names.append((block.index, name))
                leaves.append(tensor.requires_grad_())
    for sample in ids:
        loss = torch.nn.functional.cross_entropy(reference.logits(decoder, sample[None], dtype)[0, :-1], sample[1:])
        yield dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))


def llm_pruner_units(decoder, ids, reference, variant, blocks=None, faithful=False, dtype=torch.float64):
    """(block, kind, place) -> score, row by row."""
    blocks = {block.index for block in decoder.blocks} if blocks is None else set(blocks)
    samples = list(sample_gradients(decoder, ids, reference, blocks, dtype))
    units = {}

    def row_scores(block, name, columns=False):
        weight = dict(block.tensors())[f"{name}.weight"].to(dtype)
        g = sum(sample[block.index, f"{name}.weight"] for sample in samples) / len(samples)
        h = sum(sample[block.index, f"{name}.weight"] ** 2 for sample in samples) / len(samples)
        s, w2h = weight * g, weight**2 * h
        table = {"param_second": w2h, "param_mix": s - w2h / 2}.get(variant, s)
        rows = table.T if columns else table
        if variant == "vectorize":
            return [abs(float(row.sum())) for row in rows]
        return [float(row.abs().sum()) for row in rows]

    for block in decoder.blocks:
        if block.index not in blocks:
            continue
        mha = block.mha
        q, o = row_scores(block, "mha.q"), row_scores(block, "mha.o", columns=True)
        k, v = row_scores(block, "mha.k"), row_scores(block, "mha.v")
        scores = [0.0] * mha.kv_heads
        for channel in range(mha.heads * mha.head_dim):
            head = channel // mha.head_dim
            reader = head // (mha.heads // mha.kv_heads)
            folded = channel % (mha.kv_heads * mha.head_dim) // mha.head_dim
            scores[folded if faithful else reader] += q[channel] + o[channel]
        for channel in range(mha.kv_heads * mha.head_dim):
            scores[channel // mha.head_dim] += k[channel] + v[channel]
        units |= {(block.index, "groups", place): score for place, score in enumerate(scores)}
        parts = row_scores(block, "ffn.gate"), row_scores(block, "ffn.up"), row_scores(block, "ffn.down", columns=True)
        units |= {(block.index, "neurons", place): sum(one) for place, one in enumerate(zip(*parts, strict=True))}
    return units


def gate_units(decoder, ids, reference, dtype=torch.float64):
    """(block, kind, place) -> mean over samples of |dL/d gate|, gates multiplied into the forward pass."""
    units = {}
    for sample in ids:
        gates = {}
        x = decoder.embedding.to(dtype)[sample[None]]
        for block in decoder.blocks:
            mha, ffn = block.mha, block.ffn
            head = gates[block.index, "heads"] = torch.ones(mha.heads, dtype=dtype, requires_grad=True)
            neuron = gates[block.index, "neurons"] = torch.ones(ffn.width, dtype=dtype, requires_grad=True)
            context = reference.context(mha, x, decoder.rope) * head.repeat_interleave(mha.head_dim)
            x = x + reference.project(mha.o, context)
            x = x + reference.project(ffn.down, reference.activation(ffn, x) * neuron)
        normed = x / (x.square().mean(-1, keepdim=True) + decoder.eps).sqrt() * decoder.norm.to(dtype)
        logits = reference.project(decoder.head, normed)
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], sample[1:])
        slopes = dict(zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True))
        for block in decoder.blocks:
            for n, slope in enumerate(slopes[block.index, "heads"].abs()):
                unit = block.index, "groups", n // (block.mha.heads // block.mha.kv_heads)
                units[unit] = units.get(unit, 0.0) + float(slope) / len(ids)
            for n, slope in enumerate(slopes[block.index, "neurons"].abs()):
                unit = block.index, "neurons", n
                units[unit] = units.get(unit, 0.0) + float(slope) / len(ids)
    return units
