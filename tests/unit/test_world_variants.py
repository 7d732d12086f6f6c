"""The worlds' variants: what a number decides, whether it all fits, and that answers are marked by their kinds."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from csr_ray.app.run import world_spec
from csr_ray.config.schema import Eval, World
from csr_ray.errors import ConfigError
from csr_ray.evaluation.answers import score_answers
from csr_ray.evaluation.marks import quotients
from csr_ray.evaluation.suite import load_suite
from csr_ray.world.build import WorldSpec
from csr_ray.world.data import sample_scenes
from csr_ray.world.folder import write_heldout
from csr_ray.world.language import corpus, describe
from csr_ray.world.mentions import mentioned_kinds, split_sentences
from csr_ray.world.models import CLIP_CONTEXT_LENGTH, new_policy, new_scorer
from csr_ray.world.outlines import OUTLINES
from csr_ray.world.scenes import Scene, SceneObject, draw_scene
from csr_ray.world.table import draw_sheet, print_variants
from csr_ray.world.tokenizer import clip_tokenizer, policy_tokenizer
from csr_ray.world.train_policy import Probes
from csr_ray.world.training import patch_labels
from csr_ray.world.variant import DEMO, DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS, Variety, variety
from csr_ray.world.vocabulary import COLOUR_POOL, KIND_POOL, KINDS, PROMPT_POOL, TEMPLATE_POOL, TEMPLATES

FAMILY = (*DEVELOPMENT_VARIANTS, *UNTOUCHED_VARIANTS)
SOME = (1, 5, 12, 1000)


def absent_share(shown: Variety) -> float:
    """Of scenes where a partner is absent: the most that a policy which looks at what is there can get wrong."""
    two, there = shown.prior.two_families, shown.prior.partner
    return (1 - two) * (1 - there) + two * (1 - there**2)


def test_the_family_is_split_once() -> None:
    assert DEVELOPMENT_VARIANTS == (1, 2, 3, 4, 5, 6) and UNTOUCHED_VARIANTS == (7, 8, 9, 10, 11, 12)


def test_a_number_decides_a_variant_and_another_number_another() -> None:
    drawn = [variety.__wrapped__(number) for number in FAMILY]
    assert drawn == [variety.__wrapped__(number) for number in FAMILY]
    for first, second in combinations([DEMO, *drawn], 2):
        assert set(first.pairs) != set(second.pairs)
        assert dict(first.colours) != dict(second.colours)
        assert set(first.templates) != set(second.templates)
        assert first.prior != second.prior


@pytest.mark.parametrize("half", [DEVELOPMENT_VARIANTS, UNTOUCHED_VARIANTS])
def test_each_half_of_the_family_has_every_size_and_shape(half: tuple[int, ...]) -> None:
    drawn = [variety(number) for number in half]
    assert {shown.side_px for shown in drawn} == {48, 56, 64, 72, 80, 96}
    for name in ("language", "tower", "clip_tower"):
        assert len({getattr(shown, name) for shown in drawn}) == 6


@pytest.mark.parametrize("number", FAMILY)
def test_the_prior_misleads_in_a_third_to_three_fifths_of_scenes(number: int) -> None:
    shown = variety(number)
    assert 0.36 <= absent_share(shown) <= 0.6 and shown.prior.hallucination > 0.6
    scenes = sample_scenes(0, split="policy", num=1500, variety=shown)
    absent = np.mean([bool(scene.absent_partners(shown.partner)) for scene in scenes])
    assert absent == pytest.approx(absent_share(shown), abs=0.045)


@pytest.mark.parametrize("number", (*FAMILY, 1000))
def test_colours_are_told_apart_and_stand_out(number: int) -> None:
    values = [np.array(rgb) for rgb in variety(number).colours.values()]
    assert len(values) == 6
    assert min(np.linalg.norm(a - b) for a, b in combinations(values, 2)) >= 90
    # Backgrounds are 218 to 251 in every channel.
    assert min(np.linalg.norm(value - 218) for value in values) >= 90


def test_no_two_kinds_of_the_pool_look_alike() -> None:
    """At the smallest size and radius of the family: the share of covered pixels that only one of the two covers."""
    side, masks = 48, {}
    shown = next(variety(number) for number in FAMILY if variety(number).side_px == side)
    colour = next(iter(shown.colours))
    for kind in KIND_POOL:
        item = SceneObject(kind=kind, colour=colour, place="top left", centre_px=(24.0, 24.0), radius_px=6.75)
        alone = Scene(objects=(item,), background=(250, 250, 250))
        masks[kind] = np.asarray(draw_scene(alone, variety=shown)).astype(int).sum(axis=2) < 600
    for first, second in combinations(KIND_POOL, 2):
        covered = masks[first] | masks[second]
        alike = (masks[first] & masks[second]).sum() / covered.sum()
        assert alike < 0.85, (first, second, alike)


def test_the_pools_have_words_enough_that_name_one_thing_each() -> None:
    assert len(KIND_POOL) == len(set(KIND_POOL)) >= 20 and set(OUTLINES) == set(KIND_POOL)
    assert not set(KIND_POOL) & set(COLOUR_POOL)
    others = " ".join((*TEMPLATES, *TEMPLATE_POOL, *PROMPT_POOL, *COLOUR_POOL))
    assert mentioned_kinds(others, kinds=KIND_POOL) == [], "no wording names a kind by itself"
    assert all(len(split_sentences(template)) == 1 and template.count("{}") == 1 for template in TEMPLATE_POOL)
    for kind in KIND_POOL:
        assert mentioned_kinds(f"a {kind}, two {kind}s", kinds=KIND_POOL) == [kind, kind]


@pytest.mark.parametrize("number", SOME)
def test_a_description_uses_one_wording_and_names_the_variants_kinds(number: int) -> None:
    shown, rng = variety(number), np.random.default_rng(0)
    for scene in sample_scenes(1, split="train", num=60, variety=shown):
        said = describe(scene, rng=rng, variety=shown, hallucinate=False)
        assert sorted(mentioned_kinds(" ".join(said), kinds=shown.kinds)) == sorted(scene.kinds)
        used = {
            template
            for text in said
            for template in shown.templates
            if re.fullmatch(template.replace("{}", "an? [a-z]+ in [a-z]+"), text, flags=re.IGNORECASE)
        }
        assert len(used) == 1


@pytest.mark.parametrize("number", FAMILY)
def test_words_are_tokens_and_sentences_fit_the_scorer(number: int) -> None:
    shown = variety(number)
    tokenizer = policy_tokenizer(corpus(shown))
    Probes(tokenizer, width=8, variety=shown)  # asserts a token a word
    scorers = clip_tokenizer(corpus(shown), context_length=CLIP_CONTEXT_LENGTH)
    assert max(len(ids) for ids in scorers(corpus(shown))["input_ids"]) <= CLIP_CONTEXT_LENGTH


@pytest.mark.parametrize("number", FAMILY)
def test_models_have_the_variants_shape_and_are_tiny(number: int) -> None:
    shown = variety(number)
    policy = new_policy(policy_tokenizer(corpus(shown)), variety=shown)
    scorer = new_scorer(clip_tokenizer(corpus(shown), context_length=CLIP_CONTEXT_LENGTH), variety=shown)
    text = policy.config.text_config
    assert (text.hidden_size, text.num_hidden_layers) == (shown.language.width, shown.language.num_layers)
    assert text.hidden_size // text.num_attention_heads in (32, 64), "what serving engines have kernels for"
    assert policy.config.vision_config.image_size == scorer.visual.image_size[0] == shown.side_px
    assert policy.config.image_seq_length == shown.num_image_tokens
    assert sum(p.numel() for p in policy.parameters()) < 6e6 and sum(p.numel() for p in scorer.parameters()) < 4e6


def test_every_patch_lies_in_one_quadrant() -> None:
    for number in FAMILY:
        shown = variety(number)
        scenes = sample_scenes(2, split="train", num=5, variety=shown)
        labels = patch_labels(scenes, variety=shown)
        assert labels.shape == (5, shown.num_image_tokens, 2)
        for scene, row in zip(scenes, labels, strict=True):
            seen = {shown.kinds[index - 1] for index in row[:, 0].tolist() if index}
            assert seen == scene.kinds


def test_a_narrower_model_takes_more_steps_and_the_demo_as_many_as_ever() -> None:
    assert (variety(0).clip_steps, variety(0).policy_steps) == (400, 560)
    for number in FAMILY:
        shown = variety(number)
        assert 400 <= shown.clip_steps <= 800 and 560 <= shown.policy_steps <= 1120


# ---- the config and the folder ----


def test_a_config_names_the_variant_and_the_steps_of_a_weaker_judge() -> None:
    spec = world_spec(World(variant=3, clip_steps=40))
    assert (spec.variant, spec.clip_steps, spec.policy_steps) == (3, 40, None)
    assert world_spec(World()) == WorldSpec()
    assert world_spec(World(quick=True)).clip_steps == WorldSpec.quick().clip_steps
    assert world_spec(World(quick=True, clip_steps=7)).clip_steps == 7
    with pytest.raises(ValueError, match="variant"):
        World(variant=-1)
    with pytest.raises(ValueError, match="variant = -1"):
        variety(-1)
    with pytest.raises(ValueError, match="variant = -2"):
        WorldSpec(variant=-2)
    with pytest.raises(ValueError, match="clip_steps = 0"):
        WorldSpec(clip_steps=0)


def heldout(tmp_path: Path, *, number: int) -> Path:
    write_heldout(tmp_path, seed=0, num_images=12, variety=variety(number))
    return tmp_path


def write_answers(folder: Path, *, number: int) -> Path:
    """Of every image: all that is there, and one kind that is not."""
    shown, path = variety(number), folder / "answers.jsonl"
    lines = []
    for row in map(json.loads, (folder / "truth.jsonl").read_text().splitlines()):
        kinds = [item["kind"] for item in row["objects"]]
        kinds.append(next(kind for kind in shown.kinds if kind not in kinds))
        lines.append(json.dumps({"id": row["id"], "text": " ".join(f"Here is a {kind}." for kind in kinds)}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("number", (0, *SOME))
def test_answers_are_marked_by_the_kinds_that_the_folder_names(tmp_path: Path, number: int) -> None:
    folder = heldout(tmp_path, number=number)
    assert json.loads((folder / "vocabulary.json").read_text()) == {"kinds": list(variety(number).kinds)}
    answers = write_answers(folder, number=number)
    metrics = score_answers("world", answers=answers, truth=folder / "truth.jsonl")["metrics"]
    assert (metrics["chair_s"], metrics["recall"], metrics["repeat"]) == (1.0, 1.0, 0.0)
    suite = load_suite(Eval(benchmarks=("world",), data=str(folder)))
    texts = {row["id"]: row["text"] for row in map(json.loads, answers.read_text().splitlines())}
    assert quotients(suite.mark(texts, truth=suite.truth).values()) == metrics


def test_a_folder_from_before_there_were_variants_has_the_demos_kinds(tmp_path: Path) -> None:
    folder = heldout(tmp_path, number=0)
    answers = write_answers(folder, number=0)
    with_file = score_answers("world", answers=answers, truth=folder / "truth.jsonl")
    (folder / "vocabulary.json").unlink()
    assert score_answers("world", answers=answers, truth=folder / "truth.jsonl") == with_file
    suite = load_suite(Eval(benchmarks=("world",), data=str(folder)))
    assert mentioned_kinds("a star", kinds=KINDS) == ["star"] and suite.describe


@pytest.mark.parametrize("content", ["", "[]", '{"kinds": []}', '{"kinds": "star"}', '{"kinds": [1]}', "\0"])
def test_a_damaged_vocabulary_is_said_in_a_line(tmp_path: Path, content: str) -> None:
    folder = heldout(tmp_path, number=1)
    answers = write_answers(folder, number=1)
    (folder / "vocabulary.json").write_text(content)
    with pytest.raises(ConfigError, match=r"vocabulary\.json"):
        score_answers("world", answers=answers, truth=folder / "truth.jsonl")
    with pytest.raises(ConfigError, match=r"vocabulary\.json"):
        load_suite(Eval(benchmarks=("world",), data=str(folder)))


def test_the_table_has_a_line_a_variant_and_the_sheet_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    print_variants([0, 7])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["variant", "---", "0", "7"]
    assert "star-moon" in lines[2]
    draw_sheet([0, 7], path=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * 112
