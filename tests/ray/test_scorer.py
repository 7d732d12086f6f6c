"""The scorer on a real open_clip model: whatever is batched together, a score is open_clip's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from fake_generator import DyingScorer, FailingScorer
from fakes import tiny_config

from actors.pool.generators import GeneratorPool
from actors.pool.replicas import Replicas
from actors.process.pulse import actor_class
from csr_ray.app.run import world_spec
from csr_ray.config.schema import World
from csr_ray.errors import ActorFailure, ConfigError
from csr_ray.records import Picture
from csr_ray.world.build import cached_world

TEXTS = tuple(
    f"{start} a {colour} {kind}."
    for start in ("There is", "I see")
    for colour in ("red", "blue")
    for kind in ("star", "moon", "ring")
)
# A score is 100 cos: 1e-5 of the cosine would be 1e-3. What is left is the towers' own rounding in float32.
EQUAL = {"abs": 1e-5, "rel": 1e-6}

Scores = dict[tuple[Picture, str], float]


@pytest.fixture(scope="module")
def world() -> Path:
    return cached_world(world_spec(World(quick=True, num_train_images=32, num_heldout_images=48)), progress=False)


@pytest.fixture(scope="module")
def one_by_one(world: Path) -> Scores:
    """100 cos of every image with every text by open_clip itself, one call an image and one a text."""
    import open_clip
    import torch

    from csr_ray.data.images import load_image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{world / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{world / 'clip'}")
    model.eval()
    scores = {}
    with torch.no_grad():
        for image in sorted((world / "heldout" / "images").iterdir())[:8]:
            left = model.encode_image(transform(load_image(str(image)))[None], normalize=True)
            for text in TEXTS:
                right = model.encode_text(tokenizer([text]), normalize=True)
                scores[Picture(path=str(image)), text] = 100 * float(left.double() @ right.double().T)
    return scores


@pytest.mark.parametrize("size", [1, 2, 5, 16, 96])
def test_scores_equal_open_clip_one_by_one_whatever_the_batch(world: Path, one_by_one: Scores, size: int) -> None:
    from actors.score.clip import ClipModel

    clip = ClipModel(str(world / "clip"), dtype="float32", device="cpu")
    pairs = sorted(one_by_one, key=lambda pair: (pair[1], pair[0].path))  # neighbours share a text, not an image
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        scores, cut = clip.scores(batch)
        assert scores == pytest.approx([one_by_one[pair] for pair in batch], **EQUAL)
        assert not any(cut)


def test_many_callers_share_batches_and_each_gets_its_own_scores(
    ray_session: None, world: Path, one_by_one: Scores, tmp_path: Path
) -> None:
    from actors.score.scorer import ScorerActor

    config = tiny_config(tmp_path, scorer={"model": str(world / "clip"), "max_batch": 7, "max_wait_ms": 20})
    actor = (
        actor_class(ScorerActor)
        .options(num_cpus=0, max_concurrency=1000)
        .remote(config.scorer, scorers=config.scorers)
    )
    images = sorted({image for image, _ in one_by_one}, key=lambda image: image.path)
    asked = [(image, TEXTS[start : start + 3]) for start in range(0, len(TEXTS), 3) for image in images]
    calls = [actor.score.remote(asked[start : start + 2]) for start in range(0, len(asked), 2)]
    answers = [answer for call in calls for answer in ray.get(call)]
    for (image, texts), (scores, num_cut) in zip(asked, answers, strict=True):
        assert scores == pytest.approx([one_by_one[image, text] for text in texts], **EQUAL)
        assert num_cut == 0
    counters = ray.get(actor.counters.remote())
    ray.kill(actor)
    assert counters.scorer_sentences == len(one_by_one)
    assert counters.scorer_image_encodes == len(images)
    assert counters.scorer_text_encodes == len(TEXTS)
    assert counters.scorer_batches < counters.score_requests == len(asked)


def test_texts_beyond_the_context_are_cut_and_counted(world: Path) -> None:
    from actors.score.clip import ClipModel

    image = Picture(path=str(next((world / "heldout" / "images").iterdir())))
    short = "There is a red star."
    long = "There is a red star and a blue moon and a green ring and a black heart."
    clip = ClipModel(str(world / "clip"), dtype="float32", device="cpu")
    _, cut = clip.scores([(image, short), (image, long)])
    assert cut == [False, True]


def test_one_bad_image_fails_alone(ray_session: None, world: Path, one_by_one: Scores, tmp_path: Path) -> None:
    from actors.score.scorer import ScorerActor

    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    config = tiny_config(tmp_path, scorer={"model": str(world / "clip"), "max_wait_ms": 20})
    actor = (
        actor_class(ScorerActor)
        .options(num_cpus=0, max_concurrency=1000)
        .remote(config.scorer, scorers=config.scorers)
    )
    (image, text), score = next(iter(one_by_one.items()))
    good, broken = ray.get(actor.score.remote([(image, [text]), (Picture(path=str(bad)), [text])]))
    assert good[0] == pytest.approx([score], **EQUAL)
    assert isinstance(broken, ValueError) and "bad.png" in str(broken)
    ray.kill(actor)


def wait_for(scorers: list[Any], *, logs: Path) -> None:
    pool = GeneratorPool(
        tiny_config().generators,
        replicas=Replicas(generators=[], scorers=scorers, logs=logs),
        adapters=(),
        precisions=["float32"],
    )
    try:
        pool.wait_until_ready()
    finally:
        pool.close()


def test_a_model_that_a_scorer_refuses_reaches_the_user_as_his_own_error(ray_session: None, tmp_path: Path) -> None:
    from actors.score.scorer import ScorerActor

    scorer = actor_class(ScorerActor).options(num_cpus=0, max_concurrency=1000)
    config = tiny_config(scorer={"model": "ViT-B-32/openai"})
    with pytest.raises(ConfigError, match=r"^scorer\.model = 'ViT-B-32/openai': .* write ViT-B-32-quickgelu/openai$"):
        wait_for([scorer.remote(config.scorer, scorers=config.scorers)], logs=tmp_path)


def test_a_scorer_that_dies_or_fails_at_its_start_is_named_with_its_log(ray_session: None, tmp_path: Path) -> None:
    log = tmp_path / "scorer_0.log"
    dying: Any = actor_class(DyingScorer).options(num_cpus=0).remote(str(log), at="ready")
    with pytest.raises(ActorFailure, match=r"(?s)^scorer 0 died: .*scorer_0\.log:\ncannot allocate 3 GiB for the im"):
        wait_for([dying], logs=tmp_path)
    log.write_text("the image tower\n")
    failing: Any = actor_class(FailingScorer).options(num_cpus=0).remote()
    with pytest.raises(ActorFailure, match=r"(?s)^scorer 0 cannot start: MemoryError: cannot allocate 3 GiB\nlast "):
        wait_for([failing], logs=tmp_path)


def test_a_scorer_that_was_promised_a_gpu_does_not_compute_on_the_cpu_in_silence(
    ray_session: None, tmp_path: Path
) -> None:
    import torch

    from actors.score.scorer import ScorerActor

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = tiny_config(scorer={"model": str(tmp_path)}, scorers={"gpus": 0.1})
    scorer = actor_class(ScorerActor).options(num_cpus=0, max_concurrency=1000)
    with pytest.raises(ConfigError, match=r"^scorers\.gpus = 0\.1: torch sees no GPU .* or set scorers\.gpus=0$"):
        wait_for([scorer.remote(config.scorer, scorers=config.scorers)], logs=tmp_path)
