"""What the scorer's numbers are: the activation that the weights were trained under, and how far a dtype is off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_clip import (
    CONFIG,
    NAME,
    QUICK,
    TAG,
    TEXTS,
    draw_pictures,
    list_tiny_clip,
    plain_scores,
    quick_gelu,
    scores,
)

from actors.score.clip import ClipModel
from csr_ray.errors import ConfigError
from csr_ray.records import Picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return list_tiny_clip(tmp_path_factory.mktemp("listed"))


@pytest.fixture
def trained_quick(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip lists the weights under both names, as it lists OpenAI's: trained under QuickGELU."""
    from open_clip import pretrained

    for name in (NAME, QUICK):
        monkeypatch.setitem(pretrained._PRETRAINED, name, {TAG: {"file": str(weights), "quick_gelu": True}})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


def by_hand(weights: Path, pictures: list[Picture], *, act: object) -> torch.Tensor:
    import open_clip
    from safetensors.torch import load_file

    _, transform = open_clip.create_model_from_pretrained(NAME, str(weights))
    pixels = torch.stack([transform(Image.open(picture.path)) for picture in pictures])
    return plain_scores(load_file(weights), pixels=pixels, tokens=open_clip.get_tokenizer(NAME)(list(TEXTS)), act=act)


# ---- the activation ----


def test_the_name_with_the_right_activation_gives_the_scores_computed_by_hand(
    trained_quick: None, weights: Path, pictures: list[Picture]
) -> None:
    right = by_hand(weights, pictures, act=quick_gelu)
    assert torch.allclose(scores(f"{QUICK}/{TAG}", pictures), right, rtol=0, atol=1e-4)


def test_the_other_activation_gives_other_scores_and_is_refused_before_anything_is_loaded(
    trained_quick: None, weights: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = (by_hand(weights, pictures, act=act) for act in (quick_gelu, torch.nn.functional.gelu))
    assert (right - wrong).abs().max() > 0.2, "told apart by far more than rounding, 2e-5 here"
    # A file says nothing of its activation, so this is what open_clip makes of the wrong name; it only warns.
    assert torch.allclose(scores(f"{NAME}/{weights}", pictures), wrong, rtol=0, atol=1e-4)

    import open_clip

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", None)
    with pytest.raises(ConfigError, match=f"^scorer.model = '{NAME}/{TAG}': .*QuickGELU.*write {QUICK}/{TAG}$"):
        ClipModel(f"{NAME}/{TAG}", dtype="float32", device="cpu")


def test_a_file_and_a_folder_run_under_the_activation_that_they_name(
    weights: Path, pictures: list[Picture], tmp_path: Path
) -> None:
    right = by_hand(weights, pictures, act=quick_gelu)
    assert torch.allclose(scores(f"{QUICK}/{weights}", pictures), right, rtol=0, atol=1e-4)
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    config = {"model_cfg": {**CONFIG, "quick_gelu": True}, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(weights, tmp_path / "open_clip_model.safetensors")
    assert torch.allclose(scores(str(tmp_path), pictures), right, rtol=0, atol=1e-4)


def test_weights_that_do_not_load_are_the_users_error_with_the_reason(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:1000])
    for model in (f"{NAME}/{tmp_path / 'torn.safetensors'}", f"RN50/{weights}"):
        with pytest.raises(ConfigError, match=r"^scorer\.model = .*: open_clip cannot load it: "):
            ClipModel(model, dtype="float32", device="cpu")


# ---- the numbers ----


def test_a_cosine_is_as_many_nats_as_the_model_was_trained_to_mean_by_it(weights: Path) -> None:
    model = ClipModel(f"{NAME}/{weights}", dtype="float32", device="cpu")
    scale = model._model.logit_scale
    assert model.nats() == pytest.approx(float(scale.detach().exp()))
    with torch.no_grad():
        scale.fill_(float("inf"))
    with pytest.raises(ConfigError, match="image_unit=points"):
        model.nats()


def test_sentences_go_to_the_tower_without_their_padding(
    weights: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.score.text_tower import TextTower

    shapes = []
    encode = TextTower.encode
    monkeypatch.setattr(
        TextTower, "encode", lambda tower, tokens: shapes.append(tokens.shape) or encode(tower, tokens)
    )
    scores(f"{QUICK}/{weights}", pictures)
    assert shapes == [(len(TEXTS), 13)], "the longest has 11 tokens, a start and an end; the context has 77"


def test_bfloat16_runs_on_the_cpu_and_is_off_by_tenths(weights: Path, pictures: list[Picture]) -> None:
    off = (scores(f"{QUICK}/{weights}", pictures, dtype="bfloat16") - scores(f"{QUICK}/{weights}", pictures)).abs()
    assert 1e-3 < off.max() < 1.0 and off.mean() < 0.3


def test_products_of_float32_are_rounded_on_a_gpu_only_where_the_config_says_so(weights: Path) -> None:
    # torch's default would be True for convolutions.
    for dtype, allowed in (("tf32", True), ("float32", False), ("bfloat16", False)):
        ClipModel(f"{QUICK}/{weights}", dtype=dtype, device="cpu")
        assert torch.backends.cuda.matmul.allow_tf32 is allowed and torch.backends.cudnn.allow_tf32 is allowed


def test_tf32_would_move_a_score_by_hundredths(weights: Path, pictures: list[Picture]) -> None:
    """A stand-in for the GPU: the factors of every product are rounded to TF32's 10 bits, the sums are float32's."""
    plain = scores(f"{QUICK}/{weights}", pictures)
    with _Tf32():
        rounded = scores(f"{QUICK}/{weights}", pictures)
    off = (rounded - plain).abs()
    assert 1e-4 < off.max() < 0.1 and off.mean() < 0.03


class _Tf32(torch.overrides.TorchFunctionMode):
    """Rounds what goes into linear layers, convolutions, attention and matrix products."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("linear", "conv2d", "matmul", "__matmul__", "scaled_dot_product_attention"):
            args = tuple(self._rounded(value) for value in args)
        if name == "_native_multi_head_attention":  # the whole of it in one call: round input and weights
            args = tuple(self._rounded(value) for value in args)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(value):
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        with torch._C.DisableTorchFunction():
            bits = value.contiguous().view(torch.int32)
            return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
