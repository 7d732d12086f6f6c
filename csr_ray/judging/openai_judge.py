"""A judge behind an endpoint that speaks as OpenAI's does: the real one, or vLLM, Ollama, any gateway.

Asks again after failures that pass (429, 5xx, time-outs, answers that are none), keeps to a pace and to a budget, and
says of those that do not pass which key of the config is at fault. Before anybody has answered the first such failure
ends the work; later a single one costs its own question, because gateways have such moods, and only several in a row
end it. Needs the `openai` package (the extra `judge`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from csr_ray.config.schema import Judge as JudgeKeys
from csr_ray.errors import ConfigError, JudgeFailure, JudgeFailureKind, JudgeGone
from csr_ray.judging.budget import Budget, Spent, most_input_tokens
from csr_ray.judging.kept import KeptReply, ReplyFile, inquiry_key
from csr_ray.judging.pace import Pace, asked_wait_s, back_off_s
from csr_ray.records import Message
from csr_ray.redaction import without_credentials, without_secret

_log = logging.getLogger(__name__)

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_KINDS: Mapping[int, JudgeFailureKind] = {408: "timed_out", 429: "busy"}
_GOES_ON = "start the same command again: it goes on where it was"
_MOST_CHARACTERS = 300
# So many questions in a row without a connection, each after all its tries, and nobody is there any more; so many in
# a row that are refused for the same key of the config, and it is that key.
_MOST_LOST_IN_A_ROW = 5
# Where nobody has ever answered, the URL is more likely wrong than the endpoint busy.
_FIRST_TRIES = 3


class _Passing(Exception):
    """A failure that may be over when the question is asked again."""

    def __init__(
        self, said: str, *, kind: JudgeFailureKind, wait_s: float | None = None, may_be_paid: bool = False
    ) -> None:
        super().__init__(said)
        self.kind = kind
        self.wait_s = wait_s
        self.may_be_paid = may_be_paid


class _ConfigAtFault(Exception):
    """A status that a wrong key of the config gives, if it is given to every question.

    Attributes:
        end: what is said where it ends the work.
    """

    def __init__(self, end: ConfigError, *, said: str) -> None:
        super().__init__(said)
        self.end = end


def check_judge(keys: JudgeKeys) -> None:
    """Whether the judge can be asked, as far as that is seen without asking it.

    Raises:
        ConfigError: the package is not installed, or the variable that should hold the key is empty.
    """
    if importlib.util.find_spec("openai") is None:
        raise ConfigError("judge.url: the package 'openai' is not installed; pip install 'csr_ray[judge]'")
    if keys.key_env is not None and not os.environ.get(keys.key_env, "").strip():
        raise ConfigError(
            f"judge.key_env = {keys.key_env!r}: there is no such environment variable, or it is empty; export the "
            "endpoint's key under that name, or leave judge.key_env out for an endpoint that wants none"
        )


class OpenAIJudge:
    """A `Judge` of `csr_ray.ports`. To be used as `async with`, in one event loop.

    Args:
        replies: the file of its answers; what is in it is not asked again, and what it cost counts.
        is_checked: it was asked once already at this start, so a wrong key, URL or model would have been said; what
            looks like one now is taken for a trouble of the endpoint, until it lasts.

    Raises:
        ConfigError: see `check_judge`.
    """

    def __init__(self, keys: JudgeKeys, *, replies: ReplyFile, is_checked: bool = False) -> None:
        check_judge(keys)
        self._keys = keys
        self._key = os.environ.get(keys.key_env, "").strip() if keys.key_env else None
        self._replies = replies
        self._budget = Budget(
            keys.max_cost_usd,
            usd_per_million_input_tokens=keys.usd_per_million_input_tokens,
            usd_per_million_output_tokens=keys.usd_per_million_output_tokens,
            spent=replies.spent,
        )
        self._pace = Pace(keys.requests_per_minute)
        self._places = asyncio.Semaphore(keys.concurrency)
        self._under_way: dict[str, asyncio.Future[str]] = {}
        self._limit_key = "max_tokens"
        self._has_answered = is_checked
        self._fault_in_a_row = ""  # what the last questions were lost by, if it may be the config or a dead endpoint
        self._num_lost_in_a_row = 0
        self._ends_s = float("inf")

    async def __aenter__(self) -> OpenAIJudge:
        import openai

        self._openai: Any = openai
        # Whatever else the library would take from the environment is said here, so that nothing goes anywhere
        # unasked. It wants some key, and endpoints without one take any.
        self._client: Any = openai.AsyncOpenAI(
            base_url=self._keys.url,
            api_key=self._key or "none",
            timeout=self._keys.timeout_s,
            max_retries=0,
        )
        if self._keys.time_limit_s is not None:
            self._ends_s = time.monotonic() + self._keys.time_limit_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @property
    def name(self) -> str:
        return self._keys.model

    @property
    def spent(self) -> Spent:
        """What its answers have cost, those of earlier starts included."""
        return self._budget.spent

    async def reply(self, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> str:
        """See `csr_ray.ports`. The same question is asked once, however often it is put."""
        key = inquiry_key(self._keys.model, messages=messages, temperature=temperature, max_tokens=max_tokens)
        if (kept := self._replies.find(key)) is not None:
            return kept
        if (asked := self._under_way.get(key)) is not None:
            return await asyncio.shield(asked)
        asked = asyncio.get_running_loop().create_future()
        asked.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody else may have asked
        self._under_way[key] = asked
        try:
            async with self._places:
                text = await self._ask(key, messages, temperature=temperature, max_tokens=max_tokens)
            asked.set_result(text)
            return text
        except BaseException as error:
            if isinstance(error, Exception):
                asked.set_exception(error)
            else:
                asked.cancel()
            raise
        finally:
            del self._under_way[key]

    async def _ask(self, key: str, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> str:
        """Ask until there is an answer, or none is to be expected any more."""
        attempt = 0
        while True:
            try:
                text = await self._paid(key, messages, temperature=temperature, max_tokens=max_tokens)
            except _Passing as error:
                if self._ends_early(error, num_tries=attempt + 1):
                    raise self._wrong_url(str(error)) from None
                if attempt >= self._keys.retries:
                    self._lose(error)
                    raise JudgeFailure(f"no answer after {attempt + 1} tries: {error}", kind=error.kind) from None
                wait_s = error.wait_s
                if wait_s is None:
                    wait_s = back_off_s(attempt, first_s=self._keys.retry_wait_s, seed=key)
                else:
                    self._pace.pause(time.monotonic() + wait_s)  # it is said to all of us
                _log.info("the judge is asked again in %.1f s: %s", wait_s, error)
                await self._sleep(wait_s)
                attempt += 1
            except _ConfigAtFault as error:
                # By the words before the colon, which name the key.
                if not self._has_answered or self._is_lasting(str(error.end).partition(":")[0]):
                    raise error.end from None
                raise JudgeFailure(str(error), kind="refused") from None
            except JudgeFailure:
                self._is_lasting("")  # whoever refuses a question is there
                raise
            else:
                self._is_lasting("")
                return text

    def _is_lasting(self, fault: str) -> bool:
        """Count a question that was lost by this fault; returns whether so many were in a row. "": by none."""
        self._num_lost_in_a_row = self._num_lost_in_a_row + 1 if fault == self._fault_in_a_row else 1
        self._fault_in_a_row = fault
        return bool(fault) and self._num_lost_in_a_row >= _MOST_LOST_IN_A_ROW

    def _ends_early(self, error: _Passing, *, num_tries: int) -> bool:
        """Whether no endpoint of this kind is at the URL, rather than one that has its troubles."""
        if self._has_answered or error.kind not in ("unreachable", "garbled"):
            return False
        return num_tries >= min(_FIRST_TRIES, self._keys.retries + 1)

    def _lose(self, error: _Passing) -> None:
        """Count a question without an answer; somebody who answers anything at all is there."""
        if self._is_lasting(error.kind if error.kind == "unreachable" else ""):
            raise JudgeGone(
                f"judge.url = {self._keys.url!r}: for {self._num_lost_in_a_row} questions in a row there is no "
                f"connection, each after {self._keys.retries + 1} tries, the last one because: {error}; see to the "
                f"endpoint, then {_GOES_ON}"
            )

    async def _paid(self, key: str, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> str:
        """One try, paid for and kept."""
        most = self._budget.price(input_tokens=most_input_tokens(messages), output_tokens=max_tokens)
        await self._budget.hold(most)
        paid = Spent()
        try:
            await self._sleep(self._pace.wait_s(time.monotonic()))
            try:
                text, served_as, usage = await self._send(messages, temperature=temperature, max_tokens=max_tokens)
            except _Passing as error:
                if error.may_be_paid:
                    paid = most
                    self._replies.add(KeptReply(key=key, text=None, served_as="", paid=most))
                raise
            # Who says no number of tokens is taken at the most there can have been.
            paid = most if usage is None else self._budget.price(input_tokens=usage[0], output_tokens=usage[1])
            self._replies.add(KeptReply(key=key, text=text, served_as=served_as, paid=paid))
            return text
        finally:
            await self._budget.settle(most, paid=paid)

    async def _sleep(self, wait_s: float) -> None:
        if time.monotonic() + wait_s > self._ends_s:
            raise JudgeGone(
                f"judge.time_limit_s = {self._keys.time_limit_s}: it has not answered everything in that time; "
                f"raise it, or {_GOES_ON}"
            )
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _send(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int
    ) -> tuple[str, str, tuple[int, int] | None]:
        """One request: the answer, the model that gave it, and the tokens read and written if they are said."""
        openai = self._openai
        try:
            answer = await self._client.chat.completions.create(
                model=self._keys.model,
                messages=[{"role": message.role, "content": _content(message)} for message in messages],
                temperature=temperature,
                timeout=max(0.001, min(self._keys.timeout_s, self._ends_s - time.monotonic())),
                **{self._limit_key: max_tokens},
            )
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout":
                said = f"no connection within judge.timeout_s = {self._keys.timeout_s:g} s"
                raise _Passing(said, kind="unreachable") from None
            said = f"no answer within judge.timeout_s = {self._keys.timeout_s:g} s"
            # Whoever was reached has begun to answer, and may be paid for it.
            raise _Passing(said, kind="timed_out", may_be_paid=True) from None
        except openai.APIConnectionError as error:
            raise _Passing(self._clean(error.__cause__ or error), kind="unreachable") from None
        except openai.APIStatusError as error:
            raise await self._refusal(error) from None
        except (openai.OpenAIError, ValueError) as error:
            raise _Passing(f"not an answer: {self._clean(error)}", kind="garbled", may_be_paid=True) from None
        return self._read(answer)

    def _read(self, answer: Any) -> tuple[str, str, tuple[int, int] | None]:
        try:
            said = answer.choices[0].message
            text = said.content if said.content is not None else (getattr(said, "refusal", None) or "")
            served_as = str(answer.model or self._keys.model)
        except (AttributeError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            shown = answer if isinstance(answer, str) else type(answer).__name__
            raise _Passing(f"not an answer: {self._clean(shown)!r}", kind="garbled", may_be_paid=True)
        self._has_answered = True
        usage = getattr(answer, "usage", None)
        tokens = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        if isinstance(tokens[0], int) and isinstance(tokens[1], int):
            return text, served_as, (tokens[0], tokens[1])
        return text, served_as, None

    async def _refusal(self, error: Any) -> Exception:
        """What follows from a status that is no success."""
        status, words = int(error.status_code), self._clean(self._words_of(error))
        said = f"the endpoint answers {status}, {words}"
        if (end := await self._config_at_fault(error, status=status, words=words)) is not None:
            return _ConfigAtFault(end, said=said)
        if status in _PASSING or status >= 500:
            wait_s = asked_wait_s(error.response.headers)
            return _Passing(f"it answers {status}, {words}", kind=_KINDS.get(status, "failed"), wait_s=wait_s)
        if status == 400 and self._limit_key == "max_tokens" and "max_completion_tokens" in words:
            self._limit_key = "max_completion_tokens"  # as OpenAI's newer models call it
            return _Passing(words, kind="refused", wait_s=0.0)
        return JudgeFailure(said, kind="refused")

    async def _config_at_fault(self, error: Any, *, status: int, words: str) -> ConfigError | None:
        """Which key of the config such a status speaks of; None: of none."""
        keys = self._keys
        if status in (401, 403):
            remedy = "look whether it is the key of this endpoint" if keys.key_env else "name the variable of its key"
            return ConfigError(f"judge.key_env = {keys.key_env!r}: the endpoint answers {status}, {words}; {remedy}")
        if status == 429 and error.code == "insufficient_quota":
            return ConfigError(f"judge.key_env = {keys.key_env!r}: nothing is left to be paid with: {words}")
        # Why a question is refused (400) may name the model, too, so there only what is said for programs counts.
        is_of_model = error.param == "model" or error.code == "model_not_found"
        if status == 400 and is_of_model:
            return ConfigError(f"judge.model = {keys.model!r}: {words}")
        if status in (404, 405) or status // 100 == 3:
            if is_of_model or keys.model in self._words_of(error):
                return ConfigError(f"judge.model = {keys.model!r}: {await self._known_models()}")
            return self._wrong_url(f"it answers {status}, {words}")
        return None

    @staticmethod
    def _words_of(error: Any) -> str:
        """What the endpoint itself said; the library's words where it said nothing that can be read."""
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return said if isinstance(said, str) and said else str(error.message)

    async def _known_models(self) -> str:
        try:
            names = [model.id async for model in self._client.models.list()]
        except Exception:  # it was asked for the words only
            names = []
        if not names:
            return "the endpoint has no such model"
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"the endpoint has no such model; it has {', '.join(names[:5])}{more}"

    def _wrong_url(self, said: str) -> ConfigError:
        hint = ""
        if not urlsplit(self._keys.url).path.strip("/"):
            hint = f", which mostly is {self._keys.url.rstrip('/')}/v1"
        return ConfigError(
            f"judge.url = {self._keys.url!r}: no endpoint of OpenAI's kind is there: {said}; give its address up to "
            f"the version{hint}, and see that it runs"
        )

    def _clean(self, said: object) -> str:
        """One short line without secrets."""
        words = " ".join(str(said).split()) or type(said).__name__
        return without_secret(without_credentials(words), self._key)[:_MOST_CHARACTERS]


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.image:
        return message.text
    picture = {"type": "image_url", "image_url": {"url": message.image}}
    return [picture, {"type": "text", "text": message.text}]
