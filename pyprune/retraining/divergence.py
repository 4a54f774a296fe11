"""How far a student's next-token distribution is from a teacher's, with its gradient in the student's logits.

With z the student's logits and l the teacher's, p = softmax(z / t), q = softmax(l / t) at the temperature t:

    forward:  D = sum_i q_i (log q_i - log p_i)      dD/dz_j = (p_j - q_j) / t
    reverse:  D = sum_i p_i (log p_i - log q_i)      dD/dz_j = p_j (log p_j - log q_j - D) / t

With top_k both sums go over k + 1 outcomes: the teacher's k likeliest tokens, and all the others together. That is at
most the whole divergence (data processing inequality), and zero only where the masses of the others agree too.
Sources: Hinton et al. 2015 (temperature), MiniLLM (Gu et al. 2024) for the reverse form.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("forward-kl", "reverse-kl")


def divergence(
    logits: Tensor, teacher: Tensor, kind: str, temperature: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """D of each row `[R]`, and dD/d(logits) `[R, V]`, of logits `[R, V]` of both; top_k below V, or None for all."""
    student, teacher = logits / temperature, teacher / temperature
    if top_k is None:
        value, slope = _whole(student, teacher, kind)
    else:
        value, slope = _outcomes(student, teacher, kind, top_k)
    return value, slope.div_(temperature)


def _whole(student: Tensor, teacher: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    difference = log_p - log_q
    if kind == "forward-kl":
        q = log_q.exp_()
        value = -(q * difference).sum(-1)
        return value, log_p.exp_().sub_(q)
    p = log_p.exp_()
    value = (p * difference).sum(-1)
    return value, difference.sub_(value[:, None]).mul_(p)


def _outcomes(student: Tensor, teacher: Tensor, kind: str, top_k: int) -> tuple[Tensor, Tensor]:
    """Over the teacher's `top_k` tokens and the rest: logits of both already divided by the temperature."""
    likely_logits, likely = teacher.topk(top_k, dim=-1)
    total_p, total_q = student.logsumexp(-1, keepdim=True), teacher.logsumexp(-1, keepdim=True)
    log_p, log_q = student.gather(-1, likely) - total_p, likely_logits - total_q
    # The rest's mass by a sum over the rest: 1 - sum(likely) would be all rounding where the teacher is sure.
    rest_p = student.scatter(-1, likely, -torch.inf).logsumexp(-1, keepdim=True)
    rest_q = teacher.scatter_(-1, likely, -torch.inf).logsumexp(-1, keepdim=True)
    log_p = torch.cat([log_p, rest_p - total_p], -1)  # [R, k + 1]
    log_q = torch.cat([log_q, rest_q - total_q], -1)
    difference = log_p - log_q
    if kind == "forward-kl":
        q = log_q.exp()
        value = -(q * difference).sum(-1)
        slope = (student - rest_p).exp_().mul_(-q[:, -1:])  # of the rest: p_j - q_rest p_j / p_rest
        slope.scatter_(-1, likely, -q[:, :-1])
        return value, slope.add_((student - total_p).exp_())
    p = log_p.exp()
    value = (p * difference).sum(-1)
    excess = difference - value[:, None]
    slope = (student - total_p).exp_().mul_(excess[:, -1:])
    return value, slope.scatter_(-1, likely, p[:, :-1] * excess[:, :-1])
