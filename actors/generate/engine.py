"""One vLLM engine as methods and the evaluation see it. Knows token ids, images and weights; knows no trees.

The prompt goes in as raw ids, with one placeholder for the image, followed by the ids of the answer so far: nothing
is decoded and tokenised again. The picture is named by a hash of its key, so the engine finds its features again
instead of encoding it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.generate.arguments import engine_arguments, engine_environment
from actors.generate.capacity import Limit, Room, tree_tokens, trees_that_fit
from actors.generate.contrast import ContrastDecoding
from actors.generate.core_process import ProcessAhead
from actors.generate.expand import Draft, Expansion, Tokens
from actors.handover.hot_adapter import HotAdapter, refusal
from actors.handover.proofs import COMPARED_TOKENS
from actors.process.counters import Counting
from actors.process.pulse import Progress
from csr_ray.config.schema import Config, Decoding, Generators, Policy, Search
from csr_ray.counters import Counters
from csr_ray.data.chat import answer_ids, prompt_ids
from csr_ray.data.files import UnreadableError
from csr_ray.data.pictures import load_picture
from csr_ray.errors import ConfigError, DoesNotFit
from csr_ray.policy.processor import load_processor
from csr_ray.policy.source import local_folder
from csr_ray.policy.visual_tokens import kept_tokens
from csr_ray.records import REMOVED, UNK, Ask, Contrast, Picture, Sentence
from csr_ray.rollout.contrast import pictures_without

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydantic import ValidationError

_log = logging.getLogger(__name__)

_TRIES = 3
_IMAGES_KEPT = 512
_TEXTS_KEPT = 65_536
_RESET_S = 10.0


@contextlib.contextmanager
def _telling_what_does_not_fit() -> Iterator[None]:
    """Raise DoesNotFit where vLLM refuses a request, which it does for its length alone: all else in it is ours."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except VLLMValidationError as error:
        raise DoesNotFit(str(error)) from error


def _refused(error: ValidationError) -> ConfigError:
    reasons = "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
    return ConfigError(f"vLLM refuses the settings of policy and generators: {reasons}")


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """What an engine's worker reports after it has loaded new weights.

    Attributes:
        checksum: of the base's tensors that were changed and of the adapters; of a LoRA, of its tensors.
        num_unseen: how many tensors' layers could not be looked at afterwards, because they are not found by name or
            are split in an unknown way; of all workers.
        max_tensor_gap: largest relative gap between a layer and its tensor (`actors.handover.layer_proof`).
        wrong_tensors: names of the tensors whose gap is larger than rounding explains, worst first.
        swallowed, kept: what rounding to the engine's dtype left of the update (`csr_ray.policy.weights.Rounding`),
            of the worker whose part lost most.
        seconds: by what was done, of the worker that took longest.
    """

    checksum: str
    num_tensors: int
    num_unseen: int
    max_tensor_gap: float
    wrong_tensors: tuple[str, ...]
    swallowed: float
    kept: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ProbeReply:
    """What an engine says of a probe's answer.

    Attributes:
        logp: of the answer, summed over its tokens, in nats, with nothing taken from a cache.
        cache_gap: mean difference of a token's log-prob where cached prefixes may be used, in nats.
        num_stale: how many tokens of the prompt and the answer were found in the prefix cache, where right after new
            weights there are none; with `generators.publish: adapter` they are not counted.
    """

    logp: float
    cache_gap: float
    num_stale: int


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine has to know of a config.

    Attributes:
        search: how continuations are drawn.
        contrasts: whether answers may be decoded by VDD.
        most_first_tokens: of how many tokens `VllmEngine.first_tokens` may be asked.
        rollout_contrast: by which a method's whole answers are decoded; None: as the policy itself says them.
        seed: vLLM's own seed; requests that sample bring their own.
        sleeps: whether the engine gives its GPU to others now and then (`VllmEngine.sleep`).
        max_lora_rank, lora_targets: rank and layers of the LoRA that the engine makes room for with
            `generators.publish: adapter`; otherwise the rank is 0.
    """

    policy: Policy
    generators: Generators
    search: Search = field(default_factory=Search)
    contrasts: bool = False
    most_first_tokens: int = 0
    rollout_contrast: Contrast | None = None
    seed: int = 0
    sleeps: bool = False
    max_lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config, *, phases_a_round: int = 1) -> EngineSettings:
        is_hot = config.generators.publish == "adapter"
        return cls(
            policy=config.policy,
            generators=config.generators,
            search=config.search,
            **cls.of_decoding(config.decoding),
            seed=config.run.seed,
            sleeps=config.cluster.layout == "colocated",
            max_lora_rank=config.served_rank(phases_a_round=phases_a_round) if is_hot else 0,
            lora_targets=config.train.lora_targets,
        )

    @staticmethod
    def of_decoding(decoding: Decoding) -> dict[str, Any]:
        """The settings that follow from how answers are decoded, by name."""
        return {
            "contrasts": decoding.kind == "vdd",
            "most_first_tokens": decoding.top_tokens,
            "rollout_contrast": decoding.contrast if decoding.rollouts else None,
        }


class VllmEngine:
    """The `csr_ray.ports.Engine` on vLLM's `AsyncLLM`. Create it, then `await start()`.

    Args:
        model: reference of the base policy (`csr_ray.policy.source`).
        counting: where the engine adds what it does.

    Attributes:
        room: lets in as many trees as the KV cache holds; there once the engine has started.
        progress: of the requests under way, a step of the engine at a time.
    """

    room: Room

    def __init__(self, settings: EngineSettings, *, model: Path | str, counting: Counting) -> None:
        self._settings = settings
        self._model = str(model)
        self._search = settings.search
        self._counting = counting
        self._hot: HotAdapter | None = None
        if settings.generators.publish == "adapter":
            self._hot = HotAdapter(max_rank=settings.max_lora_rank, targets=settings.lora_targets)
        self._ids: dict[tuple[str, str], list[int]] = {}
        self._images: OrderedDict[Picture, Image] = OrderedDict()
        self._requests = itertools.count()
        self._llm: Any = None
        self.progress = Progress()

    async def start(
        self, ahead: ProcessAhead | None = None, *, on_processes: Callable[[], None] = lambda: None
    ) -> None:
        """Start vLLM's processes with the base policy.

        Args:
            ahead: what becomes the engine's process; None: vLLM starts one.
            on_processes: called when everything is imported, and the processes are started.

        Raises:
            ConfigError: vLLM refuses what the config asks for.
        """
        from pydantic import ValidationError
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        os.environ.update(engine_environment(self._settings))
        self._model = str(await asyncio.to_thread(local_folder, self._model))
        kept = await asyncio.to_thread(kept_tokens, self._model, asked=self._settings.policy.visual_tokens)
        self._processor = await asyncio.to_thread(load_processor, self._model, visual_tokens=kept)
        from actors.generate.engine_stats import stat_logger

        arguments = AsyncEngineArgs(
            **engine_arguments(
                self._settings, model=self._model, on_cpu=current_platform.is_cpu(), visual_tokens=kept
            ),
            **(self._hot.engine_arguments() if self._hot else {}),
        )
        on_processes()
        try:
            with contextlib.nullcontext() if ahead is None else ahead.is_the_engine():
                self._llm = AsyncLLM.from_engine_args(
                    arguments, stat_loggers=[stat_logger(self._counting, progress=self.progress)]
                )
        except Exception as error:
            if self._hot is not None and (reason := refusal(arguments.create_model_config())):
                raise reason from error
            if isinstance(error, ValidationError):  # which cannot leave this process
                raise _refused(error) from None
            raise
        self._block_size = self._llm.vllm_config.cache_config.block_size
        self.room = Room(await self._limit())
        tokenizer = self._processor.tokenizer
        ends = _end_tokens(self._model, tokenizer=tokenizer)
        tokens = Tokens.of(tokenizer, search=self._search, ends=ends, unused=_image_token(self._llm.model_config))
        self._expansion = Expansion(self._search, tokens, on_broken=self._count_broken)
        self._contrast = ContrastDecoding(
            tokens.broken, self._settings.generators.max_num_seqs, on_broken=self._count_broken
        )

    def _count_broken(self) -> None:
        self._counting.add(Counters(groups_redone=1))

    async def _limit(self) -> Limit:
        """How many trees the KV cache holds, for pictures of about a megapixel."""
        cache_tokens = self._llm.vllm_config.cache_config.kv_cache_size_tokens
        needed = tree_tokens(
            self._search,
            prompt_tokens=await self._num_prompt_tokens(),
            max_model_len=self._llm.model_config.max_model_len,
            block_tokens=self._block_size,
        )
        limit = Limit(most=self._settings.generators.most_in_flight, fits=trees_that_fit(cache_tokens, needed=needed))
        if limit.now < limit.most:
            _log.warning(
                "the KV cache holds %d tokens and a tree needs about %d: %d trees at once to begin with, not %d",
                cache_tokens,
                needed,
                limit.now,
                limit.most,
            )
        return limit

    async def _num_prompt_tokens(self) -> int:
        """Tokens of a short prompt with a picture of a megapixel, which only the model's own processor knows."""
        from PIL import Image

        prompt_ids = self._prompt_ids("Describe this image in detail.")
        try:
            rendered = await self._render(prompt_ids, image=Image.new("RGB", (1024, 1024)), key="a blank megapixel")
        except DoesNotFit:
            return int(self._llm.model_config.max_model_len)
        await self._llm.reset_mm_cache()  # the engine's process has never seen that picture
        return len(rendered["prompt_token_ids"])

    async def continuations(
        self, ask: Ask, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        """See `csr_ray.ports.Engine`."""

        async def decode(suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> list[list[Draft]]:
            finals = await self._finals(ask, suffix=suffix, options=options)
            if suffix:
                self._count_continuations(finals)
            return [[self._draft(final, output) for output in _in_order(final)] for final in finals]

        return await self._expansion.children(
            decode,
            prompt_ids=self._prompt_ids(ask.text, change=ask.picture.change),
            prefix_ids=prefix_ids,
            num=num,
            max_tokens=max_tokens,
            seed=seed,
        )

    async def answer(
        self,
        ask: Ask,
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
        top_p: float = 1.0,
        contrast: Contrast | None = None,
    ) -> Sentence:
        """See `csr_ray.ports.Engine`."""
        if contrast is not None:
            return await self._contrasted(
                ask, contrast=contrast, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed
            )
        outputs = await self._generate(
            ask,
            n=1,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed if temperature else None,
            logprobs=0,
        )
        return self._sentence(outputs[0])

    async def _contrasted(self, ask: Ask, *, contrast: Contrast, **how: Any) -> Sentence:
        """An answer by VDD decoding.

        Raises:
            ValueError: this engine was not started for it.
        """
        if not self._settings.contrasts:
            raise ValueError("this engine was started without VDD decoding; set decoding.kind=vdd")
        changed = pictures_without(ask.picture, changes=contrast.changes)
        asks = [ask, *(replace(ask, picture=picture) for picture in changed)]

        async def decode(
            suffix: Sequence[int], members: Sequence[int], options: Sequence[dict[str, Any]]
        ) -> list[Draft]:
            finals = await self._finals_of([asks[member] for member in members], suffix=suffix, options=options)
            return [self._draft(final, final.outputs[0]) for final in finals]

        draft = await self._contrast.answer(decode, contrast=contrast, **how)
        return Sentence(text=self._text(draft.ids), token_ids=draft.ids, logps=draft.logps, ended=draft.ended)

    async def first_tokens(self, ask: Ask, *, num: int) -> list[tuple[str, int, float]]:
        """See `csr_ray.ports.Engine`."""
        (output,) = await self._generate(ask, n=1, max_tokens=1, temperature=0.0, logprobs=num)
        ranked = _most_probable(output.logprobs[0])[:num]
        return [(str(self._processor.tokenizer.decode([token])), token, logp) for token, logp in ranked]

    def token_ids(self, text: str) -> tuple[int, ...]:
        """See `csr_ray.ports.Engine`."""
        return tuple(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """See `csr_ray.ports.Engine`."""
        return tuple(answer_ids(self._processor, answer=text, ends=self._expansion.tokens.ends))

    async def answer_logp(self, ask: Ask, *, answer_ids: Sequence[int]) -> float:
        """See `csr_ray.ports.Engine`."""
        logps, _ = await self._teacher_forced(ask, answer_ids=answer_ids)
        return sum(logps)

    async def unreadable(self, picture: Picture) -> UnreadableError | None:
        """Why a picture cannot be used, or None if it can; then it is kept for the requests that follow."""
        try:
            await self._image(picture)
        except UnreadableError as error:
            return error
        return None

    async def probe(self, ask: Ask, *, answer_ids: Sequence[int]) -> ProbeReply:
        """The answer's log-prob computed anew, and how far its tokens' are from it if cached prefixes may be used.

        Where nothing is cached, as right after new weights, one pass computes the log-probs and shows that nothing
        was, and each token compared continues what that pass has left in the cache. Otherwise what is cached is
        compared with a second pass that reads none of it.
        """
        fresh, num_cached = await self._teacher_forced(ask, answer_ids=answer_ids, reads_cache=True)
        positions = self.compared_positions(len(answer_ids))
        cached = await asyncio.gather(*(self._forced(ask, answer_ids=answer_ids, position=at) for at in positions))
        if num_cached:
            fresh, _ = await self._teacher_forced(ask, answer_ids=answer_ids)
        gaps = [abs(logp - fresh[at]) for at, logp in zip(positions, cached, strict=True)]
        # A hot LoRA's prefixes go by a name of their own in the cache, and the base's are good for ever.
        num_stale = num_cached if self._hot is None else 0
        return ProbeReply(logp=sum(fresh), cache_gap=sum(gaps) / len(gaps), num_stale=num_stale)

    @staticmethod
    def compared_positions(num_tokens: int) -> list[int]:
        """The positions in an answer at which cached and fresh log-probs are compared, the last among them."""
        return sorted(
            {round((num_tokens - 1) * number / COMPARED_TOKENS) for number in range(1, COMPARED_TOKENS + 1)}
        )

    async def _forced(self, ask: Ask, *, answer_ids: Sequence[int], position: int) -> float:
        """The log-prob of the answer's token at `position`, as a request that continues the tokens before it."""
        token = answer_ids[position]
        # Logprobs are those of the raw distribution, so forcing the token does not change its own.
        outputs = await self._generate(
            ask,
            suffix=answer_ids[:position],
            n=1,
            max_tokens=1,
            temperature=0.0,
            logprobs=0,
            allowed_token_ids=[token],
        )
        return float(outputs[0].logprobs[0][token].logprob)

    async def _teacher_forced(
        self, ask: Ask, *, answer_ids: Sequence[int], reads_cache: bool = False
    ) -> tuple[list[float], int]:
        """The log-prob of each of the answer's tokens, and how many tokens were found in the prefix cache.

        With `reads_cache` there are no log-probs of what was found, and then none are returned at all.
        """
        skips = not reads_cache
        options = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "skip_reading_prefix_cache": skips}
        final = await self._final(ask, suffix=answer_ids, **options)
        if final.num_cached_tokens:
            return [], int(final.num_cached_tokens)
        tail = final.prompt_logprobs[-len(answer_ids) :]
        return [float(entry[token].logprob) for entry, token in zip(tail, answer_ids, strict=True)], 0

    async def load_policy(self, *, adapters: Sequence[str]) -> LoadedPolicy:
        """Serve the base plus all `adapters` (folders, oldest first); nothing cached of the old policy is used again.

        They are merged inside the engine's workers or served beside the base, as `generators.publish` says.
        """
        if self._hot is not None:
            results = await self._hot.switch(self._llm, adapters=adapters)
        else:
            results = await self._llm.collective_rpc("load_policy", args=(self._model, list(adapters)))
            # Encoder outputs and cached prefixes belong to the old weights; a stale one would be silently wrong.
            await self._reset_caches()
        checksums = {result["checksum"] for result in results}
        assert len(checksums) == 1, f"tensor-parallel ranks read different weights: {checksums}"
        wrong = tuple(name for result in results for name in result["wrong_tensors"])
        slowest = max(results, key=lambda result: sum(result["seconds"].values()))
        gap = max(result["max_tensor_gap"] for result in results)
        of_all = {
            "wrong_tensors": wrong,
            "max_tensor_gap": gap,
            "num_unseen": sum(result["num_unseen"] for result in results),
            "swallowed": max(result["swallowed"] for result in results),
            "kept": min(result["kept"] for result in results),
        }
        return LoadedPolicy(**{**slowest, **of_all})

    async def sleep(self) -> None:
        """Leave the GPU to others: the weights wait in main memory, and the cache is given up.

        There have to be no requests. On a CPU nothing is moved.
        """
        await self._llm.sleep(level=1)

    async def wake(self) -> None:
        """Serve again, with the weights of before."""
        await self._llm.wake_up()
        await self._reset_caches()

    async def _reset_caches(self) -> None:
        await self._reset_prefix_cache()
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()

    async def _reset_prefix_cache(self) -> None:
        """Empty the prefix cache.

        Raises:
            RuntimeError: vLLM refuses for `_RESET_S` seconds, because requests still hold blocks of it.
        """
        deadline_s = time.monotonic() + _RESET_S
        while not await self._llm.reset_prefix_cache():
            # The blocks of a request that has just ended are given back with the engine's next step.
            if time.monotonic() > deadline_s:
                raise RuntimeError(
                    "vLLM did not empty its prefix cache: requests still hold blocks of the old policy"
                )
            await asyncio.sleep(0.05)

    @property
    def has_died(self) -> bool:
        """Whether the engine's process is gone. May be asked in any thread."""
        return self._llm is not None and bool(self._llm.errored)

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
        if self._hot is not None:
            self._hot.close()

    async def _generate(self, ask: Ask, **options: Any) -> list[Any]:
        return _in_order(await self._final(ask, **options))

    async def _final(self, ask: Ask, *, suffix: Sequence[int] = (), **options: Any) -> Any:
        (final,) = await self._finals(ask, suffix=suffix, options=[options])
        return final

    def _prompt_ids(self, text: str, *, change: str = "") -> list[int]:
        """The prompt's tokens; of a picture that is not shown without the image's, or with the unknown one for it.

        Raises:
            ValueError: the tokenizer has no unknown token.
        """
        kind = change if change in (REMOVED, UNK) else ""
        if (text, kind) not in self._ids:
            if len(self._ids) >= _TEXTS_KEPT:
                self._ids.clear()
            ids = prompt_ids(self._processor, question=text, has_picture=kind != REMOVED)
            if kind == UNK:
                if (unknown := self._processor.tokenizer.unk_token_id) is None:
                    raise ValueError(
                        "decoding.without: this policy's tokenizer has no unknown token; set decoding.without=none"
                    )
                image = _image_token(self._llm.model_config)
                ids = [unknown if token == image else token for token in ids]
            self._ids[text, kind] = ids
        return self._ids[text, kind]

    async def _finals(self, ask: Ask, *, suffix: Sequence[int], options: Sequence[dict[str, Any]]) -> list[Any]:
        """Submit one request for each set of options, in this order and behind one prompt, and await them all."""
        return await self._finals_of([ask] * len(options), suffix=suffix, options=options)

    async def _finals_of(
        self, asks: Sequence[Ask], *, suffix: Sequence[int], options: Sequence[dict[str, Any]]
    ) -> list[Any]:
        """Submit one request for each set of options and what it asks, in this order, and await them all.

        Each prompt is rendered (and its image looked up) once for all of its requests.
        """
        images = {ask: await self._image(ask.picture) for ask in dict.fromkeys(asks)}
        prompts = {ask: [*self._prompt_ids(ask.text, change=ask.picture.change), *suffix] for ask in images}
        finals: dict[int, Any] = {}
        for _ in range(_TRIES):
            left = [number for number in range(len(options)) if number not in finals]
            rendered = {
                ask: await self._render(prompts[ask], image=images[ask], key=ask.picture.key)
                for ask in dict.fromkeys(asks[number] for number in left)
            }
            # A rendered prompt is submitted without a pause on the way, so tasks that start in order submit in order.
            done = await asyncio.gather(*(self._run(rendered[asks[number]], options[number]) for number in left))
            # The engine's process may have lost a picture that this one thinks it has: the two caches of processed
            # pictures see them in different orders. vLLM notices, returns an error, and takes the picture next time.
            finals |= {
                number: final
                for number, final in zip(left, done, strict=True)
                if all(output.finish_reason != "error" for output in final.outputs)
            }
            if len(finals) == len(options):
                break
        else:
            raise RuntimeError(f"vLLM refused a request {_TRIES} times (finish_reason 'error'); its log says why")
        return [finals[number] for number in range(len(options))]

    async def _render(self, token_ids: Sequence[int], *, image: Image | None, key: str) -> Any:
        from vllm.inputs import TokensPrompt
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        if image is not None:
            prompt["multi_modal_data"] = {"image": image}
            prompt["multi_modal_uuids"] = {"image": hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}
        parsed = parse_model_prompt(self._llm.model_config, prompt)
        with _telling_what_does_not_fit():
            (rendered,) = await self._llm.renderer.render_cmpl_async([parsed])
        return rendered

    def _count_continuations(self, finals: Sequence[Any]) -> None:
        """Count continuations, and those that miss the cache.

        Every whole block before a continuation's last token was computed for its parent already, so it should be
        found in the prefix cache.
        """
        misses = sum(
            (final.num_cached_tokens or 0) < (len(final.prompt_token_ids) - 1) // self._block_size * self._block_size
            for final in finals
        )
        self._counting.add(Counters(continuations=len(finals), continuation_misses=misses))
        self.room.saw(continuations=len(finals), misses=misses)

    async def _run(self, rendered: Any, options: dict[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, **options)
        lora = self._hot.request if self._hot else None
        request, final = str(next(self._requests)), None
        self.progress.begin()
        try:
            with _telling_what_does_not_fit():
                async for output in self._llm.generate(rendered, parameters, request_id=request, lora_request=lora):
                    final = output
        finally:
            self.progress.end()
        assert final is not None and final.finished
        return final

    def _draft(self, final: Any, output: Any) -> Draft:
        ids = tuple(output.token_ids)
        stop = output.stop_reason if output.finish_reason == "stop" else None
        # The main end token ends an answer without a reason given, a model's other end tokens by their number.
        ended = output.finish_reason == "stop" and (stop is None or stop in self._expansion.tokens.ends)
        return Draft(
            ids=ids,
            logps=tuple(entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)),
            stop=None if ended else stop,
            ended=ended,
            full=len(final.prompt_token_ids) + len(ids) >= self._llm.model_config.max_model_len,
            first=_most_probable(output.logprobs[0]) if ids else (),
            last=_most_probable(output.logprobs[-1]) if ids else (),
        )

    async def _image(self, picture: Picture) -> Image | None:
        """The decoded picture, kept while its prompt is at work; the engine's own cache has the processed form.

        None: there is none to show.
        """
        if not picture.is_shown:
            return None
        if picture not in self._images:
            image = await asyncio.to_thread(load_picture, picture)
            self._images[picture] = image
            if len(self._images) > _IMAGES_KEPT:
                self._images.popitem(last=False)
            return image
        self._images.move_to_end(picture)
        return self._images[picture]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _sentence(self, output: Any) -> Sentence:
        ids = tuple(output.token_ids)
        return Sentence(
            text=self._text(ids),
            token_ids=ids,
            logps=tuple(entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)),
            ended=output.finish_reason == "stop",
        )


def _most_probable(entries: dict[int, Any]) -> tuple[tuple[int, float], ...]:
    """Tokens and log-probs of one position, best first."""
    ranked = sorted(entries.items(), key=lambda item: item[1].rank)
    return tuple((token, entry.logprob) for token, entry in ranked)


def _in_order(final: Any) -> list[Any]:
    return sorted(final.outputs, key=lambda output: output.index)


def _end_tokens(model: str, *, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and those that the model's generation config adds."""
    from transformers import GenerationConfig

    try:
        more = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # a model folder need not have one
        more = None
    ends = [] if more is None else [more] if isinstance(more, int) else list(more)
    return [*ends, tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else ends


def _image_token(model_config: Any) -> int:
    """The token that stands for an image in a prompt, and which no answer holds."""
    config = model_config.hf_config
    token = getattr(config, "image_token_id", None)
    return int(config.image_token_index if token is None else token)
