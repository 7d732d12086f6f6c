"""One vLLM engine as the search and the evaluation see it. Knows token ids, images and versions; knows no trees.

The prompt goes in as raw ids with one image placeholder plus the answer so far: nothing is decoded and re-tokenised.
The image is named by a uuid of its path, so the engine finds its features again instead of encoding it anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csr_ray.chat import prompt_ids
from csr_ray.config import Config
from csr_ray.prompts import load_image
from csr_ray.types import Prompt, Question, Sentence

if TYPE_CHECKING:
    from PIL.Image import Image

STOPS = (".", "!", "?")
_IMAGES_KEPT = 512


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """What an engine worker says after new weights: their checksum, how many tensors, and the seconds it took."""

    checksum: str
    num_tensors: int
    seconds: float


class VllmEngine:
    """`AsyncLLM` with images by path. Create it, then `await start()`."""

    def __init__(self, config: Config, *, model: Path | str) -> None:
        self._config = config
        self._model = str(model)
        self._ids: dict[str, list[int]] = {}
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._requests = itertools.count()
        self._llm: Any = None

    async def start(self) -> None:
        from transformers import AutoProcessor
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import UniProcExecutor

        generators = self._config.generators
        on_cpu = current_platform.is_cpu()
        self._processor = await asyncio.to_thread(AutoProcessor.from_pretrained, self._model)
        # One image a prompt: a modality not named here would count as allowed, and be warmed up and kept room for.
        arguments: dict[str, Any] = {
            "model": self._model,
            "dtype": self._config.policy.dtype,
            "max_model_len": self._config.policy.max_model_len,
            "max_num_seqs": generators.max_num_seqs,
            "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
            "enable_prefix_caching": True,
            "mm_processor_cache_gb": 1,
            "worker_extension_cls": "actors.engine_worker.PolicyLoader",
            "seed": self._config.run.seed,
            "disable_log_stats": True,
            "enforce_eager": on_cpu,
            "tensor_parallel_size": max(1, int(generators.gpus)),
        }
        if on_cpu:
            arguments["kv_cache_memory_bytes"] = int(generators.kv_cache_gib * 2**30)
            # Only whole blocks are found again, and a tree's branches share a prefix of some tens of tokens: with the
            # default of 128 a short prompt is never found. 32 is the smallest that vLLM's CPU attention takes.
            arguments["block_size"] = 32
            # One process fewer to start and to talk to. vLLM asks for a worker process of its own so that it can set
            # that one's thread count; here the actor's environment has set it already.
            arguments["distributed_executor_backend"] = UniProcExecutor
            # A seeded request whose prefill is split dies on CPU in vLLM 0.32 ("CPU Generator does not use offset").
            arguments["enable_chunked_prefill"] = False
        else:
            arguments["gpu_memory_utilization"] = generators.gpu_memory_utilization
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def continuations(
        self, prompt: Prompt, *, prefix_ids: tuple[int, ...], num: int, max_tokens: int, seed: int
    ) -> list[Sentence]:
        """See `csr_ray.ports.Engine`."""
        search = self._config.search
        outputs = await self._generate(
            prompt.text,
            image=prompt.image,
            suffix=prefix_ids,
            n=num,
            max_tokens=max_tokens,
            temperature=search.temperature,
            top_p=search.top_p,
            seed=seed,
            stop=list(STOPS),
            include_stop_str_in_output=True,
            logprobs=0,
        )
        return [self._sentence(output) for output in outputs]

    async def answer(self, question: Question, *, temperature: float, max_tokens: int, seed: int) -> Sentence:
        """One whole answer, greedy at temperature 0."""
        outputs = await self._generate(
            question.text,
            image=question.image,
            n=1,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed if temperature else None,
            logprobs=0,
        )
        return self._sentence(outputs[0])

    async def answer_logp(self, question: Question, *, answer_ids: Sequence[int]) -> float:
        """Log-prob of a given answer under the loaded policy (teacher-forced), summed over its tokens."""
        final = await self._final(
            question.text, image=question.image, suffix=answer_ids, max_tokens=1, temperature=0.0, prompt_logprobs=0
        )
        tail = final.prompt_logprobs[-len(answer_ids) :]
        return float(sum(entry[token].logprob for entry, token in zip(tail, answer_ids, strict=True)))

    async def load_policy(self, *, adapters: Sequence[str]) -> LoadedPolicy:
        """Base weights plus all `adapters`, merged inside the engine's workers; every cache of the old one goes."""
        results = await self._llm.collective_rpc("load_policy", args=(self._model, list(adapters)))
        # Encoder outputs and cached prefixes belong to the old weights; a stale one would be silently wrong.
        await self._llm.reset_prefix_cache()
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        checksums = {result["checksum"] for result in results}
        assert len(checksums) == 1, f"tensor-parallel ranks read different weights: {checksums}"
        return LoadedPolicy(**results[0])

    async def check_health(self) -> None:
        await self._llm.check_health()

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    async def _generate(self, text: str, *, image: str, **options: Any) -> list[Any]:
        final = await self._final(text, image=image, **options)
        return sorted(final.outputs, key=lambda output: output.index)

    async def _final(self, text: str, *, image: str, suffix: Sequence[int] = (), **options: Any) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        if text not in self._ids:
            self._ids[text] = prompt_ids(self._processor, question=text)
        request = TokensPrompt(
            prompt_token_ids=[*self._ids[text], *suffix],
            multi_modal_data={"image": await self._image(image)},
            multi_modal_uuids={"image": hashlib.blake2b(image.encode(), digest_size=16).hexdigest()},
        )
        parameters = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize="stop" in options, **options)
        final = None
        async for output in self._llm.generate(request, parameters, request_id=str(next(self._requests))):
            final = output
        assert final is not None and final.finished
        return final

    async def _image(self, path: str) -> Image:
        """Decoded once while its prompt is at work; the engine's own cache holds the processed form."""
        if path not in self._images:
            self._images[path] = await asyncio.to_thread(load_image, path)
            if len(self._images) > _IMAGES_KEPT:
                self._images.popitem(last=False)
        self._images.move_to_end(path)
        return self._images[path]

    def _sentence(self, output: Any) -> Sentence:
        ids = tuple(output.token_ids)
        return Sentence(
            text=self._processor.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            token_ids=ids,
            logps=tuple(entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)),
            # A string is one of STOPS. A model with several end tokens ends on one silently, on the others by number.
            ended=output.finish_reason == "stop" and not isinstance(output.stop_reason, str),
        )
