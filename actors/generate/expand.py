"""How a node gets its children: the three ways of `search.expand`, in terms of requests to one engine.

All of them stop at tokens, never at strings: the engine's core decides by itself, and nothing is decoded to text
while it runs. A large vocabulary has hundreds of tokens at which a sentence may end (562 of Qwen's 151,643), and vLLM
looks through a request's list of them for every token, copies it, and sends it to its other process. So a request
names the plainest only (`Tokens.asked`), and what comes back is cut at the first of the others: a token depends on
those before it alone, so that is what the engine would have returned. Whether a stop really ends a sentence is judged
here (`csr_ray.rollout.sentences`), and a sentence that goes on is continued. This module does not know vLLM's
classes, images or trees.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from csr_ray.config.schema import Search
from csr_ray.records import Sentence
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.sentences import Ending, ending, may_end_sentence, starts_new

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUPLING: Final = "hamming"
"""The key of a request's `extra_args` under which it is told of its group."""
COUPLING_CLASS: Final = "actors.generate.hamming:HammingGroups"
"""The logits processor that reads it, by name: its module imports vLLM, which only engine processes should."""
COUPLED: Final[Mapping[str, str]] = {"diverse_greedy": COUPLING_CLASS}
"""The values of `search.expand` whose requests read each other's tokens while they run, and what couples them.

Their engine runs without async scheduling and on vLLM's first model runner (`actors.generate.arguments`), and so does
one that contrasts answers (`actors.generate.contrast`). Whoever adds another coupled way names it here and needs
nothing else.
"""
MEMBER_LOGPROBS_BEYOND: Final = 4
"""How many more log-probs a member of a diverse group asks for than there are members: one, and three to spare."""
_MOST_STOPS_ASKED: Final = 32
_ROUNDING: Final = 1e-5  # nats; log-probs closer than this count as equal


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One sequence as the engine returned it.

    Attributes:
        logps: natural log-probs of `ids`, one for each token.
        stop: the token of `stop_token_ids` that ended it, if one did.
        ended: it ended at an end-of-answer token.
        full: the model's context is full.
        penalties: what `diverse_greedy` took off each token's log-prob; empty for the other ways.
        first, last: the most probable tokens at the first and at the last position with their log-probs, best first;
            as many as the request asked for.
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    stop: int | None = None
    ended: bool = False
    full: bool = False
    penalties: tuple[float, ...] = ()
    first: tuple[tuple[int, float], ...] = ()
    last: tuple[tuple[int, float], ...] = ()


class Decode(Protocol):
    """Submits requests that share one prompt, in order, and waits for all; one list of drafts for each request."""

    def __call__(self, suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> Awaitable[list[list[Draft]]]: ...


@dataclass(frozen=True)
class Tokens:
    """What the expansion needs to know of the policy's tokenizer.

    Attributes:
        stops: tokens at which a sentence may end.
        ends: tokens that end an answer.
        broken: a token that no answer holds, by which the logits processor says that a group is broken.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    ends: frozenset[int]
    broken: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, search: Search, ends: Sequence[int], unused: int) -> Tokens:
        """Read the vocabulary once. `unused` is a token that no answer holds (the image's).

        Raises:
            ValueError: the tokenizer has no token for a lone period.
        """
        if search.sentence_end == "period_token":
            period = tokenizer.convert_tokens_to_ids(".")
            if not isinstance(period, int) or period == tokenizer.unk_token_id:
                raise ValueError("search.sentence_end = 'period_token': this policy's tokenizer has no token '.'")
            stops = frozenset([period])
        else:
            special = set(tokenizer.all_special_ids)
            texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
            stops = frozenset(
                token for token, text in enumerate(texts) if token not in special and may_end_sentence(text)
            )
        return cls(tokenizer, stops, frozenset(ends), unused)

    @cached_property
    def asked(self) -> list[int]:
        """The stops that a request names: the plainest `_MOST_STOPS_ASKED`, first a lone . ! or ? in white space."""
        if len(self.stops) <= _MOST_STOPS_ASKED:
            return sorted(self.stops)
        plainest = sorted(self.stops, key=lambda token: (len(self.text([token]).strip()), token))
        return plainest[:_MOST_STOPS_ASKED]

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def num_chars(self, ids: Sequence[int], *, num_pads: int) -> int:
        pad = str(self.tokenizer.pad_token or "")
        return len(self.tokenizer.decode(ids, skip_special_tokens=False)) + num_pads * len(pad)


@dataclass
class Expansion:
    """Gives nodes their children, as `search.expand` says. One instance serves all prompts of an engine.

    Attributes:
        together: decode the members of a diverse group side by side. Otherwise they are decoded one after the other,
            and each is told what the earlier ones are charged for; that is slower, but right whatever the engine
            does, and a broken group falls back to it.
        on_broken: called for each group whose order could not be kept, and which is decoded again.
    """

    search: Search
    tokens: Tokens
    together: bool = True
    on_broken: Callable[[], None] = lambda: None
    _names: itertools.count[int] = field(default_factory=itertools.count)

    async def children(
        self,
        decode: Decode,
        *,
        prompt_ids: Sequence[int],
        prefix_ids: Sequence[int],
        num: int,
        max_tokens: int,
        seed: int,
    ) -> list[Sentence]:
        """Decode `num` next sentences of at most `max_tokens` tokens each.

        Args:
            prompt_ids: of the prompt; they only count towards `search.max_chars`.
            prefix_ids: of the answer so far.
        """
        expand = {
            "sample": self._sample,
            "first_token": self._first_token,
            "diverse_greedy": self._diverse_greedy,
        }[self.search.expand]

        async def cut(suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> list[list[Draft]]:
            return [[self._cut(draft) for draft in drafts] for drafts in await decode(suffix, options)]

        drafts = await expand(cut, prefix_ids, num, max_tokens, seed)
        if self.search.sentence_end == "sentence":
            drafts = await asyncio.gather(
                *(
                    self._to_sentence_end(cut, prefix_ids, draft, max_tokens, derive_seed(seed, position))
                    for position, draft in enumerate(drafts)
                )
            )
        if self.search.expand == "diverse_greedy":
            drafts = _best_first(drafts)
        longest = max(len(draft.ids) for draft in drafts)
        return [
            Sentence(
                text=self.tokens.text(draft.ids).strip(),
                token_ids=draft.ids,
                logps=draft.logps,
                penalties=draft.penalties,
                ended=draft.ended or not self.tokens.ends.isdisjoint(draft.ids),
                full=draft.full,
                num_chars=0
                if self.search.max_chars is None
                else self.tokens.num_chars([*prompt_ids, *prefix_ids, *draft.ids], num_pads=longest - len(draft.ids)),
            )
            for draft in drafts
        ]

    def _cut(self, draft: Draft) -> Draft:
        """The draft as if its request had named all stops."""
        end = next((position for position, token in enumerate(draft.ids) if token in self.tokens.stops), None)
        if end is None or draft.stop == draft.ids[end]:
            return draft
        if end + 1 == len(draft.ids):
            return replace(draft, stop=draft.ids[end])
        ids, logps = draft.ids[: end + 1], draft.logps[: end + 1]
        return replace(draft, ids=ids, logps=logps, stop=ids[end], ended=False, full=False, last=())

    async def _sample(
        self, decode: Decode, prefix: Sequence[int], num: int, max_tokens: int, seed: int
    ) -> list[Draft]:
        (drafts,) = await decode(prefix, [self._sampled(n=num, seed=seed, max_tokens=max_tokens)])
        return drafts

    async def _first_token(
        self, decode: Decode, prefix: Sequence[int], num: int, max_tokens: int, seed: int
    ) -> list[Draft]:
        ((first,),) = await decode(prefix, [{**self._greedy(max_tokens=1), "logprobs": num}])
        return list(
            await asyncio.gather(
                *(self._greedy_behind(decode, prefix, token, logp, max_tokens) for token, logp in first.first)
            )
        )

    async def _greedy_behind(
        self, decode: Decode, prefix: Sequence[int], token: int, logp: float, max_tokens: int
    ) -> Draft:
        if token in self.tokens.ends and self.search.eos == "stop":
            return Draft(ids=(token,), logps=(logp,), ended=True)
        if token in self.tokens.stops or max_tokens == 1:
            return Draft(ids=(token,), logps=(logp,), stop=token if token in self.tokens.stops else None)
        ((rest,),) = await decode([*prefix, token], [self._greedy(max_tokens=max_tokens - 1)])
        return replace(rest, ids=(token, *rest.ids), logps=(logp, *rest.logps))

    async def _diverse_greedy(
        self, decode: Decode, prefix: Sequence[int], num: int, max_tokens: int, seed: int
    ) -> list[Draft]:
        drafts = await self._group_together(decode, prefix, num, max_tokens) if self.together else None
        if drafts is None:
            drafts = await self._group_in_turn(decode, prefix, num, max_tokens)
        charged: list[list[int]] = []
        for member, draft in enumerate(drafts):
            penalties = self._penalties(draft.ids, charged=charged)
            charged.append(self._charged(draft, charged=charged))
            drafts[member] = replace(draft, penalties=penalties)
        return drafts

    async def _group_together(
        self, decode: Decode, prefix: Sequence[int], num: int, max_tokens: int
    ) -> list[Draft] | None:
        """Decode all members at once; None if the engine could not keep their order."""
        group = str(next(self._names))
        stops = [*self.tokens.stops, self.tokens.broken]
        options = [
            {
                **self._member(num, max_tokens=max_tokens),
                "stop_token_ids": stops,
                "extra_args": {COUPLING: {**self._coupling(member), "group": group}},
            }
            for member in range(num)
        ]
        drafts = [draft for (draft,) in await decode(prefix, options)]
        if any(draft.stop == self.tokens.broken for draft in drafts):
            self.on_broken()
            return None
        return drafts

    async def _group_in_turn(self, decode: Decode, prefix: Sequence[int], num: int, max_tokens: int) -> list[Draft]:
        drafts: list[Draft] = []
        charged: list[list[int]] = []
        for member in range(num):
            coupling = {**self._coupling(member), "earlier": list(charged)}
            options = {**self._member(num, max_tokens=max_tokens), "extra_args": {COUPLING: coupling}}
            ((draft,),) = await decode(prefix, [options])
            drafts.append(draft)
            charged.append(self._charged(draft, charged=charged))
        return drafts

    def _member(self, num: int, *, max_tokens: int) -> dict[str, Any]:
        """A greedy request from which the runner-up at its end can be read.

        Of the `num + 1` most probable tokens one is the pick and at most `num - 1` are charged to earlier members, so
        one at least has no penalty; whatever beats it after penalties was more probable and is among them too. A few
        more are asked for because tokens may tie for the last place.
        """
        return {
            **self._greedy(max_tokens=max_tokens),
            # All of them: where a member ends, its runner-up is read, and others have to know of its end.
            "stop_token_ids": list(self.tokens.stops),
            "logprobs": num + MEMBER_LOGPROBS_BEYOND,
            "flat_logprobs": True,
        }

    def _coupling(self, member: int) -> dict[str, Any]:
        """What the logits processor has to know of one member."""
        return {
            "member": member,
            "penalty": self.search.diversity_penalty,
            "stops": sorted(self._member_stops),
            "broken": self.tokens.broken,
        }

    @property
    def _member_stops(self) -> frozenset[int]:
        return self.tokens.stops | (self.tokens.ends if self.search.eos == "stop" else frozenset())

    def _penalty(self, token: int, position: int, charged: Sequence[Sequence[int]]) -> float:
        """What is taken off a token's log-prob at a position; `charged` are the tokens of the earlier members."""
        num = sum(position < len(other) and other[position] == token for other in charged)
        return self.search.diversity_penalty * num

    def _penalties(self, ids: Sequence[int], *, charged: Sequence[Sequence[int]]) -> tuple[float, ...]:
        return tuple(self._penalty(token, position, charged) for position, token in enumerate(ids))

    def _charged(self, draft: Draft, *, charged: Sequence[Sequence[int]]) -> list[int]:
        """What later members are charged for: this one's tokens, but its second choice where it ended.

        The logits processor (`actors.generate.hamming`) knows the second choice too, but has no way to return it. Of
        equal scores the processor takes the lowest token, and in bfloat16 many scores are equal. The log-probs read
        here differ from those scores by rounding, so scores closer than `_ROUNDING` count as equal.
        """
        *before, end = draft.ids
        if end not in self._member_stops:
            return [*before, end]
        position = len(before)
        others = [
            (logp - self._penalty(token, position, charged), token) for token, logp in draft.last if token != end
        ]
        best = max(score for score, _ in others)
        return [*before, min(token for score, token in others if score >= best - _ROUNDING)]

    async def _to_sentence_end(
        self, decode: Decode, prefix: Sequence[int], draft: Draft, max_tokens: int, seed: int
    ) -> Draft:
        """Continue a draft that stopped where no sentence ends, until one does.

        Where only the next character can tell, one token is decoded to see it, and dropped if the sentence had ended.
        A continuation is sampled if `search.expand` samples, otherwise greedy, and it is a request of its own: a
        member of a diverse group leaves its group at its first stop.
        """
        if draft.stop is None:
            return draft
        while not (draft.ended or draft.full) and len(draft.ids) < max_tokens:
            text = self.tokens.text(draft.ids)
            judged = ending(text)
            if judged is Ending.WHOLE:
                break
            room = 1 if judged is Ending.UNSURE else max_tokens - len(draft.ids)
            more = await self._one_more(decode, [*prefix, *draft.ids], room, derive_seed(seed, len(draft.ids)))
            if judged is Ending.UNSURE:
                behind = self.tokens.text([*draft.ids, *more.ids])[len(text) :]
                if starts_new(behind):
                    break
            draft = _joined(draft, more)
        return draft

    async def _one_more(self, decode: Decode, prefix: Sequence[int], max_tokens: int, seed: int) -> Draft:
        options = (
            self._sampled(n=1, seed=seed, max_tokens=max_tokens)
            if self.search.expand == "sample"
            else self._greedy(max_tokens=max_tokens)
        )
        ((draft,),) = await decode(prefix, [options])
        return draft

    def _sampled(self, *, n: int, seed: int, max_tokens: int) -> dict[str, Any]:
        search = self.search
        return {
            **self._greedy(max_tokens=max_tokens),
            "n": n,
            "temperature": search.temperature,
            "top_p": search.top_p,
            "seed": seed,
        }

    def _greedy(self, *, max_tokens: int) -> dict[str, Any]:
        return {
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "stop_token_ids": self.tokens.asked,
            "ignore_eos": self.search.eos == "continue",
            "logprobs": 0,
        }


def _best_first(drafts: Sequence[Draft]) -> list[Draft]:
    """Members of a diverse group in the order in which transformers' beam search returns them.

    That is by penalised mean log-prob, and of equals the later member first.
    """

    def score(draft: Draft) -> float:
        return (sum(draft.logps) - sum(draft.penalties)) / len(draft.ids)

    return sorted(reversed(drafts), key=score, reverse=True)


def _joined(draft: Draft, more: Draft) -> Draft:
    penalties = (*draft.penalties, *(0.0 for _ in more.ids)) if draft.penalties else ()
    return replace(more, ids=draft.ids + more.ids, logps=draft.logps + more.logps, penalties=penalties)
