"""VDD's and Post-Hoc debias' formulas: what a policy says without a picture is taken off what it says with one.

Source: *Debiasing Multimodal Large Language Models* (Zhang et al. 2024, arXiv 2403.05262) and its released code
(yfzhang114/LLaVA-Align). Knows logits and probabilities; nothing of engines, requests or questions. docs/vdd.md has
the parameters and the deviations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from csr_ray.records import Picture
from csr_ray.rollout.search import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

_UNIFORM_BITS = 53


def pictures_without(picture: Picture, *, changes: Sequence[str]) -> tuple[Picture, ...]:
    """What is shown in the picture's place, one for each change; noise is the same for every question about it."""
    seed = derive_seed("contrast", picture.path)
    return tuple(
        replace(picture, change=change, seed=0 if change.partition(":")[0] != "noise" else seed) for change in changes
    )


def contrasted(shown: Tensor, hidden: Tensor, *, alpha: Tensor, cutoff: Tensor) -> Tensor:
    """VDD's logits: (1 + alpha) l - alpha l', and -inf where l < max l + log cutoff.

    The cut-off goes by the policy's own logits, before anything is taken off them.

    Args:
        shown: logits l with the picture, [R, V].
        hidden: logits l' without it, [R, V].
        alpha, cutoff: of each row, [R]; a cutoff of 0 cuts nothing off.
    """
    limit = shown.amax(dim=-1) + cutoff.log()
    strength = alpha[:, None]
    out = (1 + strength) * shown - strength * hidden
    return out.masked_fill((shown < limit[:, None]) | (shown == float("-inf")), float("-inf"))


def drawn(logits: Tensor, *, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, by the row's own random number: the same number draws the same token on every machine.

    The tokens of the nucleus stand in the order of their probability, and the number says where to cut. Everything is
    computed in float64, so that rounding of the sums decides nothing.

    Args:
        logits: [R, V].
        temperature, top_p: of each row, [R]; the temperatures are above 0.
        uniform: in [0, 1), [R].

    Returns:
        Tokens [R].
    """
    shares, tokens = (
        (logits.double() / temperature.double()[:, None]).softmax(dim=-1).sort(descending=True, stable=True)
    )
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before >= top_p.double()[:, None], 0.0)
    ends = shares.cumsum(dim=-1)
    places = (ends <= uniform.double()[:, None] * ends[:, -1:]).sum(dim=-1)
    last = (shares > 0).sum(dim=-1) - 1
    return tokens.gather(-1, places.minimum(last)[:, None])[:, 0]


def uniform_of(seed: int, position: int) -> float:
    """The random number in [0, 1) of one token of an answer; whoever decodes the rest of it gets the same ones."""
    return (derive_seed(seed, "token", position) >> (62 - _UNIFORM_BITS)) / 2**_UNIFORM_BITS


def choice_shares(first_tokens: Sequence[tuple[str, float]], *, choices: Sequence[str]) -> dict[str, float] | None:
    """How likely each choice is as the first token, the choices' sum being 1.

    Tokens count in lower case and without the blanks around them; of several that are alike then, the most likely
    one counts alone, as in the released code.

    Args:
        first_tokens: texts and probabilities of the most likely first tokens, best first.

    Returns:
        None: no choice is among the tokens.
    """
    found: dict[str, float] = {}
    for text, share in first_tokens:
        found.setdefault(text.lower().strip(), share)
    shares = {choice: found.get(choice.lower(), 0.0) for choice in choices}
    total = sum(shares.values())
    return {choice: share / total for choice, share in shares.items()} if total else None


def calibrated(
    shown: Mapping[str, float],
    hidden: Mapping[str, float],
    *,
    affine: Literal["divide", "subtract"],
    smoothing: float,
) -> dict[str, float]:
    """Post-Hoc debias: q = W p + b, of which the largest is the answer.

    divide: W = diag(p')^-1 and b = 0, and q is divided by its sum. subtract: W = 1 and b = -p'; the smoothing leaves
    the sum of these differences just below 0, so they are not divided by it. p' is `hidden` with `smoothing` added to
    each.

    Args:
        shown: p, the choices' probabilities with the picture.
        hidden: p', those without it.
    """
    free = {choice: share + smoothing for choice, share in hidden.items()}
    if affine == "subtract":
        return {choice: share - free[choice] for choice, share in shown.items()}
    scores = {choice: share / free[choice] for choice, share in shown.items()}
    total = sum(scores.values())
    return {choice: score / total for choice, score in scores.items()}


def added(shares: Sequence[Mapping[str, float] | None], *, choices: Sequence[str]) -> dict[str, float]:
    """The choices' probabilities without the picture, of all its replacements; all alike where none says any."""
    known = [one for one in shares if one is not None]
    if not known:
        return dict.fromkeys(choices, 1 / len(choices))
    return {choice: sum(one[choice] for one in known) / len(known) for choice in choices}
