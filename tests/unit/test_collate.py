from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import preference_pair, single_answer
from PIL import Image
from tiny_models import NUM_IMAGE_TOKENS, build_tiny_llava

from csr_ray.data.chat import needs_special_tokens, prompt_ids, prompt_text
from csr_ray.data.pictures import load_picture, picture_size
from csr_ray.errors import PicturesGone
from csr_ray.records import Example, Picture
from csr_ray.training.collate import PairCollator, PairJudge, SharedPrefixCollator, pair_rows

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def _load(picture: Picture) -> Image.Image:
    if picture.path not in COLOURS:
        raise ValueError(f"image {picture.path}: no such file")
    return Image.new("RGB", (48, 40), COLOURS[picture.path])


def _size(picture: Picture) -> tuple[int, int]:
    return _load(picture).size


def _pair(id: str, *, image: str = "red", chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Example:
    return preference_pair(
        id=id,
        image=image,
        prompt=f"What is in image {id}?",
        chosen_ids=chosen,
        rejected_ids=rejected,
        chosen_logp=-1.5,
        rejected_logp=-2.25,
    )


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(build_tiny_llava(tmp_path_factory.mktemp("llava"), seed=0))


PAIRS = (
    _pair("long one, with a longer question", chosen=(10, 11, 12, 2), rejected=(20, 2)),
    _pair("b", image="blue", chosen=(30, 2), rejected=(40, 41, 42, 43, 2)),
)

ANSWERS = tuple(pair.target(role).token_ids for role in ("chosen", "rejected") for pair in PAIRS)


def _rows_of(batch: dict[str, torch.Tensor], *, mask: str, want: int) -> list[list[int]]:
    return [
        ids[(keep == 1) & (kind == want)].tolist()
        for ids, keep, kind in zip(batch["input_ids"], batch["attention_mask"], batch[mask], strict=True)
    ]


def test_what_was_sampled_is_what_is_trained(processor: Any) -> None:
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    answers = [
        list(ids)
        for ids in (
            PAIRS[0].chosen.token_ids,
            PAIRS[1].chosen.token_ids,
            PAIRS[0].rejected.token_ids,
            PAIRS[1].rejected.token_ids,
        )
    ]
    assert _rows_of(batch, mask="completion_mask", want=1) == answers


def test_prompt_is_the_engines_prompt_with_the_image_token_expanded(processor: Any) -> None:
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    expected = []
    for pair in PAIRS:
        raw = prompt_ids(processor, question=pair.ask.text)
        assert raw.count(image_id) == 1
        at = raw.index(image_id)
        expected.append(raw[:at] + [image_id] * NUM_IMAGE_TOKENS + raw[at + 1 :])
    assert _rows_of(batch, mask="completion_mask", want=0) == expected * 2


def test_rows_are_padded_on_the_right_only(processor: Any) -> None:
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()
    assert (batch["completion_mask"] <= batch["attention_mask"]).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.pad_token_id).all()


def test_images_stand_in_pair_order_twice(processor: Any) -> None:
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    pixels = batch["pixel_values"]
    assert len(pixels) == 4
    assert torch.equal(pixels[:2], pixels[2:])
    red = processor.image_processor(Image.new("RGB", (48, 40), COLOURS["red"]), return_tensors="pt")["pixel_values"][
        0
    ]
    assert torch.equal(pixels[0], red) and not torch.equal(pixels[1], red)


def test_each_image_is_loaded_once(processor: Any) -> None:
    loaded: list[str] = []

    def load(picture: Picture) -> Image.Image:
        loaded.append(picture.path)
        return _load(picture)

    PairCollator(processor=processor, load_picture=load)(pair_rows(PAIRS))
    assert loaded == ["red", "blue"]


def test_reference_comes_from_the_record(processor: Any) -> None:
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -1.5]
    assert batch["ref_rejected_logps"].tolist() == [-2.25, -2.25]
    assert batch["pair_index"] == [0, 1]


def test_start_token_appears_once_whether_tokenizer_or_template_writes_it(processor: Any) -> None:
    start = processor.tokenizer.bos_token_id
    question = "What is it?"
    assert prompt_ids(processor, question=question).count(start) == 1
    template = processor.chat_template
    plain = prompt_ids(processor, question=question)
    try:
        processor.chat_template = "{{ '<s>' }}" + template
        assert prompt_ids(processor, question=question) == plain
        batch = PairCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    finally:
        processor.chat_template = template
    assert ((batch["input_ids"] == start).sum(dim=1) == 1).all()


def test_tokenizer_that_closes_a_text_is_refused(processor: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = processor.tokenizer.backend_tokenizer
    kept = backend.post_processor
    try:
        backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        with pytest.raises(ValueError, match="begin-of-sequence"):
            needs_special_tokens(processor.tokenizer, text="x")
    finally:
        backend.post_processor = kept


def test_model_without_a_chat_template_is_named(processor: Any) -> None:
    template = processor.chat_template
    try:
        processor.chat_template = None
        with pytest.raises(ValueError, match=r"policy\.model.*chat template"):
            prompt_text(processor, question="x")
    finally:
        processor.chat_template = template


def test_unusable_pairs_are_counted_by_reason_and_length_counts_image_and_prompt(processor: Any) -> None:
    fits = _pair("b", chosen=(30, 2), rejected=(40, 2))
    length = len(prompt_ids(processor, question=fits.ask.text)) - 1 + NUM_IMAGE_TOKENS + 2
    pairs = (
        fits,
        _pair("b", chosen=(30, 2), rejected=(40, 41, 2)),
        _pair("b", image="gone", chosen=(1,), rejected=(2,)),
    )
    judge = PairJudge(processor=processor, picture_size=_size, max_length=length)
    assert [judge(pair) for pair in pairs] == [None, "too_long", "unreadable_image"]
    assert PairJudge(processor=processor, picture_size=_size, max_length=length - 1)(fits) == "too_long"


def test_pairs_are_not_dropped_because_a_mount_is_away(processor: Any) -> None:
    is_away = False

    def size(picture: Picture) -> tuple[int, int]:
        if is_away or picture.path == "gone":
            raise ValueError(f"image {picture.path}: no such file")
        return _size(picture)

    judge = PairJudge(processor=processor, picture_size=size, max_length=64)
    fits, gone = (_pair("b", image=image, chosen=(30, 2), rejected=(40, 2)) for image in ("red", "gone"))
    assert judge(fits) is None
    assert [judge(gone) for _ in range(40)] == ["unreadable_image"] * 40, "one broken folder is no mount"
    assert judge(fits) is None
    is_away = True
    with pytest.raises(PicturesGone, match=r"red.*no such file.*same command"):
        judge(gone)
    from_the_beginning = PairJudge(processor=processor, picture_size=size, max_length=64)
    with pytest.raises(PicturesGone, match=r"no picture can be read.*no such file"):
        for _ in range(16):
            from_the_beginning(fits)


def test_judging_does_not_decode_the_picture_and_training_names_one_damaged_since(
    processor: Any, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pair = _pair("b", image=str(path), chosen=(30, 2), rejected=(40, 2))
    judge = PairJudge(processor=processor, picture_size=picture_size, max_length=64)
    assert judge(pair) is None
    with pytest.raises(ValueError, match=r"image .*photo\.jpg: .*truncated"):
        PairCollator(processor=processor, load_picture=load_picture)(pair_rows([pair]))
    path.write_bytes(b"")
    assert judge(pair) == "unreadable_image"
    path.unlink()
    assert judge(pair) == "unreadable_image"


SINGLE = (
    single_answer(id="a", ids=(10, 11, 12, 2), image="red", prompt="What is in image a?"),
    single_answer(id="b", ids=(30, 2), image="blue", prompt="What is in image b?", weight=0.5),
)


@pytest.mark.parametrize("is_shared", [False, True])
def test_single_answers_have_weights_and_no_row_of_a_second_answer(processor: Any, is_shared: bool) -> None:
    make = SharedPrefixCollator if is_shared else PairCollator
    batch = make(processor=processor, load_picture=_load)(pair_rows(SINGLE))
    assert _rows_of(batch, mask="completion_mask", want=1) == [[10, 11, 12, 2], [30, 2]]
    assert batch["weights"].tolist() == [1.0, 0.5]
    assert not {"ref_chosen_logps", "ref_rejected_logps"} & set(batch)
    images = batch["shared"]["images"] if is_shared else batch
    assert len(images["pixel_values"]) == 2
    judge = PairJudge(processor=processor, picture_size=_size, max_length=64)
    assert [judge(example) for example in SINGLE] == [None, None]


def test_an_answer_that_the_policy_has_not_given_has_no_reference(processor: Any) -> None:
    pair = _pair("a", chosen=(30, 2), rejected=(40, 2))
    pair = replace(pair, targets=(replace(pair.chosen, logp=None), pair.rejected))
    batch = PairCollator(processor=processor, load_picture=_load)(pair_rows([pair]))
    assert batch["ref_chosen_logps"].isnan().all() and batch["ref_rejected_logps"].tolist() == [-2.25]


class _PatchProcessor:
    """Behaves as Qwen-VL's: patches of all images in one flat row, a grid per image, a kind per token."""

    chat_template = "given"

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        return self._processor.apply_chat_template(*args, **kwargs)

    def __call__(self, **kwargs: Any) -> dict[str, torch.Tensor]:
        out = dict(self._processor(**kwargs))
        del out["pixel_values"]
        out["mm_token_type_ids"] = (out["input_ids"] == self.tokenizer.convert_tokens_to_ids("<image>")).long()
        num_images = len(out["input_ids"])
        out["pixel_values"] = torch.arange(num_images * 4).reshape(num_images * 4, 1)
        out["image_grid_thw"] = torch.tensor([[1, 2, 2]] * num_images)
        return out


def test_flat_patches_and_token_kinds_follow_the_rows(processor: Any) -> None:
    batch = PairCollator(processor=_PatchProcessor(processor), load_picture=_load)(pair_rows(PAIRS))  # type: ignore[arg-type]
    assert batch["pixel_values"].flatten().tolist() == [*range(8), *range(8)]
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2]] * 4
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == image_id).long())


def test_shared_prefix_batch_holds_every_prompt_and_image_once(processor: Any) -> None:
    batch = SharedPrefixCollator(processor=processor, load_picture=_load)(pair_rows(PAIRS))
    shared = batch["shared"]
    assert len(shared["input_ids"]) == len(shared["images"]["pixel_values"]) == 2
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (shared["input_ids"] == image_id).sum(dim=1).tolist() == [NUM_IMAGE_TOKENS] * 2
    answers = [
        PAIRS[0].chosen.token_ids,
        PAIRS[1].chosen.token_ids,
        PAIRS[0].rejected.token_ids,
        PAIRS[1].rejected.token_ids,
    ]
    assert _rows_of(batch, mask="completion_mask", want=1) == [list(answer) for answer in answers]
    assert batch["ref_chosen_logps"].tolist() == [-1.5, -1.5]


@pytest.mark.parametrize("patches", [False, True])
def test_images_follow_their_pairs_into_packed_rows(processor: Any, patches: bool) -> None:
    long = (*range(20, 60), 2)
    pairs = (
        _pair("a", chosen=(10, 2), rejected=(11, 2)),
        _pair("b", image="blue", chosen=long, rejected=(30, 2)),
        _pair("c", chosen=(12, 2), rejected=(13, 2)),
    )
    kind = _PatchProcessor(processor) if patches else processor
    plain = SharedPrefixCollator(processor=kind, load_picture=_load)(pair_rows(pairs))
    num_tokens = (plain["shared"]["pair"] >= 0).sum(dim=1).tolist()
    budget = num_tokens[0] + num_tokens[2]
    batch = SharedPrefixCollator(processor=kind, load_picture=_load, budget=budget)(pair_rows(pairs))
    assert batch["pair_index"] == [0, 2, 1], "the long one does not fit between them"
    assert len(batch["shared"]["input_ids"]) == 2
    pixels, expected = (item["shared"]["images"]["pixel_values"] for item in (batch, plain))
    per_image = len(expected) // 3
    parts = expected.split(per_image)
    assert torch.equal(pixels, torch.cat([parts[0], parts[2], parts[1]]))
