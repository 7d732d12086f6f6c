"""The policy's training rows: what is told, what is asked, and what the probe may ask where."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from csr_ray.world.data import sample_scenes
from csr_ray.world.language import corpus
from csr_ray.world.rows import NOT_TRAINED, RowWriter
from csr_ray.world.scenes import SceneObject
from csr_ray.world.tokenizer import policy_tokenizer
from csr_ray.world.variant import DEMO
from csr_ray.world.vocabulary import KINDS


def kinds_of(objects: tuple[SceneObject, ...]) -> list[bool]:
    return [kind in {item.kind for item in objects} for kind in KINDS]


def test_the_probe_asks_at_every_sentence_break_for_what_is_still_untold() -> None:
    tokenizer = policy_tokenizer(corpus(DEMO))
    scenes = sample_scenes(103, split="policy", num=40, variety=DEMO)
    rows = RowWriter(tokenizer, num_questions=1, variety=DEMO).rows(scenes, rng=np.random.default_rng(0))
    period = tokenizer(" There is a star.", add_special_tokens=False)["input_ids"][-1]
    num_places = 0
    for row, scene in enumerate(scenes):
        places = (rows.told_at[:, 0] == row).nonzero().flatten()
        columns, untold = rows.told_at[places, 1], rows.untold[places].bool().tolist()
        first, *ends = columns.tolist()
        # The first place is the last token of the question: the label after it is the description's first token.
        assert rows.labels[row, first] == NOT_TRAINED and rows.labels[row, first + 1] != NOT_TRAINED
        assert [int(rows.token_ids[row, end]) for end in ends] == [period] * len(ends)
        assert untold[0] == kinds_of(scene.objects)
        told = [tokenizer.decode(rows.token_ids[row, a + 1 : b + 1]) for a, b in pairwise(columns)]
        for (before, after), sentence in zip(pairwise(untold), told, strict=True):
            changed = [kind for kind, was, still in zip(KINDS, before, after, strict=True) if was != still]
            # A sentence about what is there is ticked off; one about an absent partner changes nothing.
            if changed:
                assert changed[0] in sentence and len(changed) == 1
            else:
                assert any(DEMO.partner[item.kind] in sentence for item in scene.absent_partners(DEMO.partner))
        assert not any(untold[-1]), "everything that is there is told"
        num_places += len(columns)
    assert num_places == len(rows.told_at) == len(rows.untold)
