"""One question answered once, as a policy is used, with a score of every sentence: what `csr-ray ask` shows.

It travels to the generators in the place of a method and speaks to the same two ports, so pictures, failures and
policy versions are handled as in a run. It makes no examples. Knows nothing of runs, rounds or files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from csr_ray.config.schema import Reward
from csr_ray.evaluation.ways_to_ask import answer_question
from csr_ray.ports import Engine, Scorer
from csr_ray.records import Candidate, Example, Phase, Prompt, Question, Rollout, RolloutStats, WayToAsk
from csr_ray.rollout.cleaning import scored_text
from csr_ray.rollout.reward import image_factor, image_score
from csr_ray.rollout.search import derive_seed
from csr_ray.rollout.served import sentences_of, served_reward, served_self_score

ANSWER, SENTENCE = "answer", "sentence"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What the generators do in place of a method (the shape is `csr_ray.methods.base.Method`).

    A rollout of it has the whole answer first (role "answer"), then its sentences (role "sentence"). The answer's
    scores are "self", "image" (the mean of its sentences') and "cut" (1.0 where the limit of tokens ended it); a
    sentence's are "image" (`csr_ray.rollout.reward.image_score`) and "points", which is what that comes to in the
    unit of `reward.image_unit`. Without a scorer, and for a sentence that the cleaning dropped, they are None.

    Attributes:
        reward: of the run, by which sentences are cleaned, scored and blended.
        needs_scorer: whether there is a scorer.
        ways: how a policy is asked, by the name of the phase that it is asked in; plainly where none is named.
        temperature: 0 for the most likely answer.
        max_tokens: of an answer, at most.
        seed: of what is drawn; the draws of a picture are the same in every phase, so that answers differ by the
            policy alone.
    """

    reward: Reward
    needs_scorer: bool
    temperature: float
    max_tokens: int
    seed: int
    ways: Mapping[str, WayToAsk] = field(default_factory=dict)
    name: str = "ask"

    def phases(self, round_index: int) -> Sequence[Phase]:
        """None: nothing is trained."""
        return ()

    def refuses(self, prompt: Prompt) -> str | None:
        return None

    def examples(self, phase: Phase, rollout: Rollout) -> Sequence[Example]:
        return ()

    def rates(self, rollout: Rollout) -> Mapping[str, tuple[int, int]]:
        return {}

    async def rollout(
        self, phase: Phase, prompt: Prompt, *, engine: Engine, scorer: Scorer, policy_version: int, seed: int
    ) -> Rollout:
        """Answer one prompt; `seed` is not used (see the attribute of this name)."""
        started_s = time.perf_counter()
        way = self.ways.get(phase.name, WayToAsk())
        said = await answer_question(
            Question(id=prompt.id, image=prompt.image, text=prompt.text, way=way),
            engine=engine,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=derive_seed(self.seed, prompt.id),
        )
        sentences = sentences_of(said.text)
        texts = self._scored_texts(sentences)
        images, num_cut = await self._image_scores(prompt, texts=texts, scorer=scorer)
        factor = 1.0
        if self.needs_scorer:
            factor = image_factor(await scorer.nats() if self.reward.image_unit == "nats" else None)
        known = [image for image in images if image is not None]
        image = sum(known) / len(known) if known else None
        answer = Candidate(
            node=0,
            text=said.text,
            token_ids=said.token_ids,
            logp=sum(said.logps),
            role=ANSWER,
            scores={"self": served_self_score(said), "image": image, "cut": float(not said.ended)},
            reward=served_reward(said, image=image, weight=self.reward.weight, factor=factor),
        )
        rows = enumerate(zip(sentences, texts, images, strict=True), start=1)
        return Rollout(
            prompt=prompt,
            candidates=(answer, *(_sentence(row, node=node, factor=factor) for node, row in rows)),
            policy_version=policy_version,
            seed=self.seed,
            stats=RolloutStats(
                num_tokens=len(said.token_ids),
                num_sentences_scored=len(known),
                num_texts_cut=num_cut,
                seconds=time.perf_counter() - started_s,
            ),
        )

    def _scored_texts(self, sentences: Sequence[str]) -> list[str | None]:
        """What the scorer sees of each sentence; None from the first on that the cleaning drops."""
        if self.reward.cleaning == "none":
            return list(sentences)
        texts: list[str | None] = []
        for sentence in sentences:
            is_behind_a_dropped_one = bool(texts) and texts[-1] is None
            texts.append(None if is_behind_a_dropped_one else scored_text(sentence))
        return texts

    async def _image_scores(
        self, prompt: Prompt, *, texts: Sequence[str | None], scorer: Scorer
    ) -> tuple[list[float | None], int]:
        asked = [text for text in texts if text is not None]
        if not self.needs_scorer or not asked:
            return [None] * len(texts), 0
        cosines, num_cut = await scorer.score(prompt.ask.picture, texts=asked)
        scores = iter(image_score(cosine, floor=self.reward.floor_image) for cosine in cosines)
        return [None if text is None else next(scores) for text in texts], num_cut


def _sentence(row: tuple[str, str | None, float | None], *, node: int, factor: float) -> Candidate:
    text, seen, image = row
    return Candidate(
        node=node,
        parent=0,
        text=text,
        scored_text=seen,
        token_ids=(),
        logp=None,
        role=SENTENCE,
        scores={"image": image, "points": None if image is None else factor * image},
        final=False,
    )
