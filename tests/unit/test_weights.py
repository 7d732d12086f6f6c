from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny_llava

from csr_ray.errors import StorageError
from csr_ray.policy.checkpoint import checkpoint_name, stored_tensors, tensor_files
from csr_ray.policy.lora import LoraDelta, combined_tensors, lora_deltas, lora_layers, save_combined
from csr_ray.policy.weights import checksum, merged_tensors, save_merged

TARGETS = r".*\blanguage_model\..*\.(q_proj|down_proj)"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two PEFT adapters with random, non-zero matrices."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_pretrained(base)
        lora = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS))
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        folders.append(tmp_path_factory.mktemp("adapter") / "adapter")
        lora.save_pretrained(str(folders[-1]))
    return folders


def test_merging_equals_pefts_own(base: Path, adapters: list[Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, str(adapters[0])).merge_and_unload().state_dict()
    ours = dict(merged_tensors(base, adapters=adapters[:1]))
    assert len(ours) == 4
    for name, tensor in ours.items():
        inside = name.removesuffix(".weight").replace("language_model.model.", "model.language_model.") + ".weight"
        torch.testing.assert_close(tensor, merged[inside], rtol=1e-5, atol=1e-6)


def test_adapters_add_up_on_the_original_base(base: Path, adapters: list[Path]) -> None:
    original = load_file(base / "model.safetensors")
    one, two = (dict(merged_tensors(base, adapters=[adapter])) for adapter in adapters)
    both = dict(merged_tensors(base, adapters=adapters))
    for name, tensor in both.items():
        expected = one[name].double() + two[name].double() - original[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_update_is_in_memory_at_a_time_however_many_adapters_there_are(
    base: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them held at once made engine and trainer grow by an adapter with every round."""
    alive: weakref.WeakSet[LoraDelta] = weakref.WeakSet()
    most = 0

    class Counted(LoraDelta):
        __hash__ = object.__hash__

        def __init__(self, **fields: Any) -> None:
            super().__init__(**fields)
            nonlocal most
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr("csr_ray.policy.lora.LoraDelta", Counted)
    for _ in merged_tensors(base, adapters=adapters * 5):
        pass
    assert most == 1


def test_reading_an_adapter_again_and_again_keeps_nothing(adapters: list[Path]) -> None:
    """safetensors' `get_tensor` keeps two integers a call: hundreds of MiB in a run of hundreds of rounds."""
    layers = list(lora_layers(adapters[0]).values())
    for layer in layers:
        layer.read()
    before = sys.getallocatedblocks()
    for _ in range(500):
        for layer in layers:
            layer.read()
    assert sys.getallocatedblocks() - before < 500


def test_stored_tensors_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    written = {
        "a": torch.randn(3, 5, generator=generator),
        "b.half": torch.randn(7, generator=generator).half(),
        "c.bfloat": torch.randn(2, 3, 2, generator=generator).bfloat16(),
        "d.double": torch.randn(300, 2, generator=generator).double(),
        "e.scalar": torch.tensor(3.0),
        "f.empty": torch.zeros(0, 4),
    }
    path = tmp_path / "some.safetensors"
    save_file(written, path, metadata={"format": "pt", "odd": "ü" * 5})
    read = {name: tensor.read() for name, tensor in stored_tensors(path).items()}
    assert checksum(read.items()) == checksum(load_file(path).items()) == checksum(written.items())
    save_file({"ids": torch.arange(3)}, path)
    with pytest.raises(ValueError, match="ids is of I64; allowed"):
        stored_tensors(path)


def test_a_file_that_was_cut_after_it_was_looked_into_is_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    stored = stored_tensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off before byte"):
        stored.read()
    with pytest.raises(SafetensorError):
        stored_tensors(path)


def test_sum_is_formed_in_float32_and_rounded_once(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first, second = (lora_deltas(adapter) for adapter in adapters)
    module = "model.language_model.layers.0.self_attn.q_proj"
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    expected = (half[name].float() + first[module].dense() + second[module].dense()).bfloat16()
    stepwise = ((half[name].float() + first[module].dense()).bfloat16().float() + second[module].dense()).bfloat16()
    assert not torch.equal(expected, stepwise), "the case cannot tell one rounding from two"
    assert torch.equal(dict(merged_tensors(tmp_path, adapters=adapters))[name], expected)


def _without(adapter: Path, *, leaf: str, folder: Path) -> Path:
    """A copy of an adapter that leaves the layers of that name alone."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    folder.mkdir()
    kept = {name: tensor for name, tensor in tensors.items() if f".{leaf}." not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    return folder


def test_combined_adapter_is_the_sum_also_where_adapters_change_different_layers(
    base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    rounds = [
        adapters[0],
        _without(adapters[1], leaf="q_proj", folder=tmp_path / "down"),
        _without(adapters[1], leaf="down_proj", folder=tmp_path / "q"),
    ]
    save_combined(combined_tensors(rounds), output=tmp_path / "version_003")
    assert {delta.scale for delta in lora_deltas(tmp_path / "version_003").values()} == {1.0}
    assert {len(delta.down) for delta in lora_deltas(tmp_path / "version_003").values()} == {12}
    combined = dict(merged_tensors(base, adapters=[tmp_path / "version_003"]))
    expected = dict(merged_tensors(base, adapters=rounds))
    assert combined.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(combined[name], tensor, rtol=1e-6, atol=1e-6)
    one_short = dict(merged_tensors(base, adapters=rounds[:2]))
    assert max(float((expected[name] - one_short[name]).abs().max()) for name in expected) > 1e-2


def test_combined_adapter_is_one_that_peft_loads(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    save_combined(combined_tensors(adapters), output=tmp_path / "version_002")
    model = AutoModelForImageTextToText.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, str(tmp_path / "version_002")).merge_and_unload().state_dict()
    for name, tensor in merged_tensors(base, adapters=adapters):
        inside = name.replace("language_model.model.", "model.language_model.")
        torch.testing.assert_close(merged[inside], tensor, rtol=1e-5, atol=1e-6)


def test_adapters_that_cannot_be_summed_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    tensors = load_file(adapters[0] / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    (tmp_path / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    save_file({**tensors, name: tensors[name][1:].clone()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj is \[\d+, \d+\], before it was \[\d+, \d+\]"):
        combined_tensors([adapters[0], tmp_path])
    with pytest.raises(ValueError, match="no layer is changed"):
        combined_tensors([])


def test_without_adapters_nothing_is_touched(base: Path) -> None:
    assert list(merged_tensors(base, adapters=[])) == []


Q = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("home", "names", "expected"),
    [
        ("model.language_model.", {"language_model.model."}, "language_model.model."),
        ("model.language_model.", {"model.", "visual."}, "model."),
        ("model.language_model.", {"model.language_model."}, "model.language_model."),
        ("language_model.model.", {"language_model.model."}, "language_model.model."),
        ("model.language_model.", {"visual."}, None),
        ("model.language_model.", {"model.", "language_model."}, None),
    ],
    ids=["llava", "qwen2.5-vl", "qwen3-vl", "older adapter", "absent", "ambiguous"],
)
def test_module_names_resolve_against_what_the_checkpoint_has(
    home: str, names: set[str], expected: str | None
) -> None:
    found = checkpoint_name(home + Q, names={f"{name}{Q}.weight" for name in names})
    assert found == (None if expected is None else f"{expected}{Q}.weight")


def test_layers_the_checkpoint_lacks_are_listed(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no weights for model\.language_model\.layers\.1\.mlp\.down_proj$"):
        list(merged_tensors(tmp_path, adapters=adapters))


def test_variants_with_another_formula_are_refused(adapters: list[Path], tmp_path: Path) -> None:
    config = json.loads((adapters[0] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapters[0] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="use_dora"):
        lora_deltas(tmp_path)


def test_checksum_sees_bits_and_names_but_not_order() -> None:
    one, two = ("a", torch.tensor([1.0, 2.0])), ("b", torch.tensor([3.0]).bfloat16())
    assert checksum([one, two]) == checksum([two, one])
    assert checksum([one]) != checksum([("c", one[1])])
    assert checksum([one]) != checksum([("a", torch.tensor([1.0, 2.0000002]))])
    assert checksum([one]) != checksum([("a", one[1].reshape(2, 1))])


def test_saved_model_loads_and_answers_as_the_adapted_one(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save_merged(base, adapters=adapters[:1], output=tmp_path / "model")
    ids = torch.tensor([[1, 30, 40, 50, 60]])
    adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(adapters[0]))
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        plain = adapted.unload()(input_ids=ids).logits
        saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")(input_ids=ids).logits
    torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(saved, plain, atol=1e-2)
    AutoProcessor.from_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {path.name for path in base.iterdir()}


def test_saving_keeps_shards_names_and_metadata_and_replaces_an_older_model(
    base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    tensors = load_file(base / "model.safetensors")
    sharded, output = tmp_path / "sharded", tmp_path / "model"
    sharded.mkdir()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {name: files[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensors[name] for name, home in weight_map.items() if home == file}
        save_file(part, sharded / file, metadata={"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    output.mkdir()
    (output / "old").write_text("older model")

    save_merged(sharded, adapters=adapters, output=output)

    assert {path.name for path in output.iterdir()} == {path.name for path in sharded.iterdir()}
    assert {name: path.name for name, path in tensor_files(output).items()} == weight_map
    merged = dict(merged_tensors(base, adapters=adapters))
    for name, path in tensor_files(output).items():
        assert torch.equal(load_file(path)[name], merged.get(name, tensors[name])), name
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_failed_save_leaves_the_older_model_and_no_litter(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "old").write_text("older model")
    with pytest.raises(ValueError, match="adapter_config"):
        save_merged(base, adapters=[tmp_path / "none"], output=output)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in output.iterdir()] == ["old"]


_SAVE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from typing import Any
from csr_ray.errors import StorageError
from csr_ray.policy.lora import combined_tensors, save_combined
from csr_ray.policy.weights import save_merged

base, adapter, output = map(Path, sys.argv[1:4])
num_bytes = int(sys.argv[4])  # no file can be larger, which fails a write in its midst as a full disk does
resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
for save in (
    lambda: save_merged(base, adapters=[adapter], output=output),
    lambda: save_combined(combined_tensors([adapter]), output=output),
):
    try:
        save()
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_older_model(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    (output / "old").write_text("older model")
    # Everything but the weights has room, so it is safetensors that fails.
    num_bytes = 1 + max(path.stat().st_size for path in base.iterdir() if path.suffix != ".safetensors")
    adapter_bytes = (adapters[0] / "adapter_model.safetensors").stat().st_size
    assert num_bytes < (base / "model.safetensors").stat().st_size
    for limit, num_errors in ((num_bytes, 1), (min(num_bytes, adapter_bytes) // 2, 2)):
        arguments = [str(base), str(adapters[0]), str(output), str(limit)]
        done = subprocess.run(
            [sys.executable, "-c", _SAVE_ON_A_FULL_DISK, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) >= num_errors
        for line in lines:
            assert line.startswith(f"cannot write {output}: File too large; free some space"), line
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # With space again the same call does it.
    save_merged(base, adapters=adapters[:1], output=output)
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()}


def test_a_place_that_cannot_be_written_is_one_line(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for parent in (tmp_path / "file", Path("/proc")):  # where not even root may write
        with pytest.raises(StorageError, match=rf"^cannot write {parent}/model: .*; (move away|see that|fix) "):
            save_merged(base, adapters=adapters, output=parent / "model")
