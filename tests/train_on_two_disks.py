"""Trains the same examples twice with a worker on each of two nodes that share no disk; prints what came of it.

    python tests/train_on_two_disks.py ADDRESS MODEL FOLDER

Ray runs one driver a process, so this is a process of its own. In the second training whoever has started this script
kills a worker when FOLDER/killable is there, and makes FOLDER/killed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import ray
from fakes import preference_pair
from PIL import Image
from safetensors.torch import load_file

from actors.train.group import TrainerGroup
from csr_ray.config.schema import Train
from csr_ray.records import Cycle, TrainOrder, TrainResult
from csr_ray.store.tables import Outcome, write_example_unit

NUM_STEPS, BATCH = 6, 2
CONFIG = Train(
    workers=2,
    cpus_per_worker=2,
    batch_size=BATCH,
    lora_rank=4,
    learning_rate=1e-2,
    dtype="float32",
    threads=1,
    streaming=True,
    checkpoint_steps=1,
)


def write_files(folder: Path, *, pictures: Path) -> list[str]:
    """One file of examples a step, in the run's folder; the pictures are where both nodes see them."""
    rng, files = random.Random(0), []
    for number in range(NUM_STEPS):
        pairs = []
        for index in range(number * BATCH, (number + 1) * BATCH):
            picture = pictures / f"{index}.png"
            Image.frombytes("RGB", (48, 48), rng.randbytes(3 * 48 * 48)).save(picture)
            chosen, rejected = (tuple(rng.randrange(20, 300) for _ in range(4)) for _ in range(2))
            pairs.append(
                preference_pair(
                    id=f"pair-{index}",
                    image=str(picture),
                    prompt="Describe the image.",
                    chosen_ids=chosen,
                    rejected_ids=rejected,
                    chosen_logp=-30.0,
                    rejected_logp=-30.0,
                )
            )
        files.append(str(folder / f"unit_{number}.parquet"))
        write_example_unit(Path(files[-1]), examples=pairs, outcome=Outcome(made=BATCH))
    return files


def main() -> None:
    address, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    pictures = folder.parent.parent / "pictures"
    pictures.mkdir()
    files = write_files(folder, pictures=pictures)
    notices: list[str] = []
    trainer = TrainerGroup(CONFIG, model=model, adapters=(), logs=folder / "logs", notice=notices.append)
    trainer.start()

    def train(name: str, *, is_killed: bool) -> TrainResult:
        trainer._adapters = ()  # both are the first round of a run
        order = TrainOrder(
            cycle=Cycle(round_index=0),
            output_dir=str(folder / name / "adapter"),
            num_examples_at_most=NUM_STEPS * BATCH,
            is_whole=False,
        )
        trainer.begin(order)
        trainer.offer(files[: NUM_STEPS // 2] if is_killed else files)
        if is_killed:
            while trainer.num_early_steps < 2:
                trainer.check()
                time.sleep(0.05)
            (folder / "killable").touch()
            while not (folder / "killed").exists():
                time.sleep(0.05)
            trainer.offer(files[NUM_STEPS // 2 :])
        return trainer.finish(on_step=lambda *_: None)

    results = [train("undisturbed", is_killed=False), train("disturbed", is_killed=True)]
    ours, theirs = (load_file(Path(result.adapter) / "adapter_model.safetensors") for result in results)
    trainer.close()
    said = {
        "gap": max(float((ours[name] - theirs[name]).abs().max()) for name in theirs),
        "largest": max(float(tensor.abs().max()) for tensor in theirs.values()),
        "resumed_from_step": results[1].metrics.get("resumed_from_step"),
        "steps": [result.num_steps for result in results],
        "notices": notices,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
