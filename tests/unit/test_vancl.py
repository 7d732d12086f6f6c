"""Two views of one picture: where the painted one comes from, and what is made of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_config
from PIL import Image

from csr_ray.data.pictures import load_picture, painted
from csr_ray.errors import ConfigError
from csr_ray.methods.base import Dropped, method_of
from csr_ray.methods.vancl import read_paint, regions_of
from csr_ray.records import Candidate, Example, Picture, Prompt, Rollout, Target
from csr_ray.store.tables import Outcome, join_example_units, read_examples, write_example_unit
from csr_ray.training.objectives import sft_loss, two_views_loss
from csr_ray.world.data import sample_scenes
from csr_ray.world.scenes import draw_scene
from csr_ray.world.scenes import regions_of as regions_of_scene
from csr_ray.world.variant import DEMO

STAR = {"box": [2, 3, 10, 12], "label": "star"}
MOON = {"box": [20.5, 3, 30, 12], "label": "moon"}


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "star",
        {"box": [0, 0, 1, 1], "label": "star"},
        [],
        ["star"],
        [{"box": [0, 0, 1, 1]}],
        [{"box": [0, 0, 1], "label": "star"}],
        [{"box": [0, 0, 0, 1], "label": "star"}],
        [{"box": [0, 0, float("nan"), 1], "label": "star"}],
        [{"box": [0, 0, True, 1], "label": "star"}],
        [{"box": ["0", 0, 1, 1], "label": "star"}],
        [{"box": [0, 0, 1, 1], "label": 3}],
    ],
)
def test_what_is_no_region_is_passed_over(value: Any) -> None:
    assert regions_of(value) == []
    if isinstance(value, list):
        assert [region.label for region in regions_of([*value, STAR])] == ["star"]


def test_a_label_has_one_colour_in_all_pictures(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "p.jsonl",
        {"id": 1, "regions": [STAR, MOON]},
        {"id": "b", "regions": [STAR]},
        {"id": "c", "regions": []},
        {"id": "d"},
    )
    paint = read_paint(path, key="vancl.regions")
    assert paint == {"1": "paint:2,3,10,12,00ffff;20.5,3,30,12,ff0000", "b": "paint:2,3,10,12,00ffff"}


def test_a_file_without_regions_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = lines(tmp_path / "p.jsonl", {"id": "a", "image": "a.png", "prompt": "What?"})
    with pytest.raises(ConfigError, match=r"data\.prompts = .*no row has an `id` and `regions`"):
        method_of(tiny_config(method="vancl", data={"prompts": path}))
    with pytest.raises(ConfigError, match=r"vancl\.regions = .*cannot be read"):
        method_of(tiny_config(method="vancl", vancl={"regions": str(tmp_path / "no.jsonl")}))


def test_a_bad_file_of_regions_is_told_before_the_embedded_world_is_there(tmp_path: Path) -> None:
    def built(**keys: Any) -> Any:
        world = {"enabled": True}
        return method_of(tiny_config(method="vancl", world=world, data={"prompts": "${world}/p.jsonl"}, **keys))

    with pytest.raises(ConfigError, match=r"vancl\.regions = .*cannot be read"):
        built(vancl={"regions": str(tmp_path / "no.jsonl")})
    for keys in ({}, {"vancl": {"regions": "${world}/regions.jsonl"}}):
        assert built(**keys).name == "vancl", "what is in the world is looked at when it is there"


def test_a_prompt_whose_regions_were_taken_away_is_dropped_by_a_reason(tmp_path: Path) -> None:
    path = Path(lines(tmp_path / "r.jsonl", row("a"), row("b")))
    method = method_of(tiny_config(method="vancl", vancl={"regions": str(path)}))
    (phase,) = method.phases(0)
    truth = Candidate(node=0, text="A star.", token_ids=(4, 5), logp=None, role="truth")
    prompt = Prompt(id="a", image="a.png", text="What?", truth="A star.")
    rollout = Rollout(prompt=prompt, candidates=(truth,), policy_version=0, seed=1)
    assert not isinstance(method.examples(phase, rollout), Dropped)
    lines(path, row("b"))
    read_paint.cache_clear()  # as in the process that goes on with the run
    assert method.examples(phase, rollout) == Dropped("no_regions_any_more")


def test_prompts_without_truth_or_regions_are_refused(tmp_path: Path) -> None:
    method = method_of(tiny_config(method="vancl", vancl={"regions": lines(tmp_path / "r.jsonl", row("a"))}))
    assert method.refuses(Prompt(id="a", image="a.png", text="What?", truth="A star.")) is None
    assert "truth" in str(method.refuses(Prompt(id="a", image="a.png", text="What?")))
    assert "regions" in str(method.refuses(Prompt(id="b", image="a.png", text="What?", truth="A star.")))
    (phase,) = method.phases(0)
    assert (phase.objective, phase.num_answers) == ("two_views", 1)


def row(identity: str) -> dict[str, Any]:
    return {"id": identity, "regions": [STAR]}


class Encoder:
    def answer_ids(self, text: str) -> tuple[int, ...]:
        return tuple(range(len(text)))


def test_the_truth_is_imitated_with_the_plain_picture_and_a_painted_view(tmp_path: Path) -> None:
    method = method_of(tiny_config(method="vancl", vancl={"regions": lines(tmp_path / "r.jsonl", row("a"))}))
    (phase,) = method.phases(0)
    prompt = Prompt(id="a", image="a.png", text="What?", truth=" A star. ")
    rolling = method.rollout(phase, prompt, engine=Encoder(), scorer=None, policy_version=2, seed=5)  # type: ignore[arg-type]
    rollout = asyncio.run(rolling)
    (example,) = method.examples(phase, rollout)
    assert example.ask.picture == Picture(path="a.png"), "the plain picture is the one that is asked about"
    assert (example.preferred.text, example.view, example.method) == ("A star.", "paint:2,3,10,12,ff0000", "vancl")
    path = tmp_path / "unit.parquet"
    outcome = Outcome()
    outcome.count(example)
    write_example_unit(path, examples=[example], outcome=outcome, num_answers=1)
    join_example_units(tmp_path / "all.parquet", units=[path], num_answers=1)
    assert read_examples(tmp_path / "all.parquet") == [example]


def test_units_of_a_run_that_knew_no_views_are_joined_with_others(tmp_path: Path, monkeypatch: Any) -> None:
    from csr_ray.store import tables

    old = tables.SINGLE_ANSWERS.remove(tables.SINGLE_ANSWERS.get_field_index("image_view"))
    made = example_of("old", view="")
    with monkeypatch.context() as patched:
        patched.setitem(tables._SCHEMAS, 1, old)
        write_example_unit(tmp_path / "old.parquet", examples=[made], outcome=counted(made), num_answers=1)
    viewed = example_of("new", view="paint:0,0,4,4,ff0000")
    write_example_unit(tmp_path / "new.parquet", examples=[viewed], outcome=counted(viewed), num_answers=1)
    units = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    join_example_units(tmp_path / "all.parquet", units=units, num_answers=1)
    assert read_examples(tmp_path / "all.parquet") == [made, viewed]
    assert read_examples(tmp_path / "old.parquet") == [made]


def example_of(identity: str, *, view: str) -> Example:
    truth = Candidate(node=0, text="A star.", token_ids=(4, 5), logp=None, role="truth")
    rollout = Rollout(
        prompt=Prompt(id=identity, image="a.png", text="What?"), candidates=(truth,), policy_version=0, seed=1
    )
    target = Target(role="answer", text="A star.", token_ids=(4, 5), logp=None, reward=None, nodes=(0,))
    return Example(
        id=identity, ask=rollout.prompt.ask, targets=(target,), policy_version=0, method="vancl", seed=1, view=view
    )


def counted(example: Example) -> Outcome:
    outcome = Outcome()
    outcome.count(example)
    return outcome


def test_a_frame_lies_inside_its_box_and_leaves_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    image = load_picture(Picture(path=str(path), change="paint:10,20,30,50,ff8000"))
    pixels = np.asarray(image)
    is_changed = (pixels != 9).any(axis=-1)
    rows, columns = np.nonzero(is_changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 49, 10, 29)
    assert not is_changed[22:48, 12:28].any() and (pixels[20, 10] == (255, 128, 0)).all()
    beyond = painted(Image.new("RGB", (8, 8)), "-5,-5,300,300,ffffff", 0)
    assert beyond.size == (8, 8)


def test_the_worlds_regions_hold_the_things(tmp_path: Path) -> None:
    variety = DEMO
    for scene in sample_scenes(3, split="train", num=20, variety=variety):
        pixels = np.asarray(draw_scene(scene, variety=variety)).astype(int)
        is_thing = (abs(pixels - np.array(scene.background)).sum(axis=-1)) > 30
        for region in regions_of_scene(scene):
            left, top, right, bottom = (int(side) for side in region["box"])
            assert is_thing[top : bottom + 1, left : right + 1].any()
            is_thing[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = False
        assert not is_thing.any(), "all that is drawn is in a region"


def test_the_loss_is_the_sum_of_three_means_over_tokens() -> None:
    plain, painted_logp, apart = (torch.tensor(values) for values in ([-4.0, -9.0], [-2.0, -5.0], [0.5, 1.5]))
    num_tokens = torch.tensor([3.0, 7.0])
    loss = two_views_loss(
        plain, painted_logp, apart, num_tokens=num_tokens, view_weight=0.5, consistency_weight=2.0
    ).mean()
    assert loss.item() == pytest.approx(1.3 + 0.5 * 0.7 + 2 * 0.2)
    alone = two_views_loss(plain, painted_logp, apart, num_tokens=num_tokens, view_weight=0.0, consistency_weight=0.0)
    assert torch.equal(alone, sft_loss(plain, num_tokens=num_tokens))


def test_two_views_are_not_asked_of_a_method_that_has_none() -> None:
    with pytest.raises(ConfigError, match="objective = two_views: the method vancl alone"):
        tiny_config(train={"objective": "two_views"})
