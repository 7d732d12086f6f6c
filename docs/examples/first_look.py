# %% [markdown]
# # A first look at a run
#
# A run folder is open to Python: its figures, its trees of sentences, the pairs it trained on, and what it set aside.
# This file is a notebook of plain text: VS Code, PyCharm and Jupyter (with jupytext) run it cell by cell, and
# `RUN_DIR=runs/tiny-world python docs/examples/first_look.py` runs all of it. `make demo` makes that run.

# %%
import os

from csr_ray import load_run

run = load_run(os.environ.get("RUN_DIR", "runs/tiny-world"))
print(run)

# %% [markdown]
# ## What came of it
#
# `figures` is what `summary.json` says of a round. It is there while the run goes on, too; what was not measured yet
# is None. Shares are fractions: 0.05 is 5 %.

# %%
measured = [("base", run.summary["base"]["eval"])]
measured += [(f"round {one.number}", one.figures["eval"]) for one in run.rounds]
for name, found in measured:
    shares = {key: (found or {}).get(key) for key in ("chair_s", "recall", "pope_acc")}
    print(f"{name:<8}", *(f"{key} {100 * value:.1f} %" for key, value in shares.items() if value is not None))

# %% [markdown]
# After each training the gate compares the new policy with the one before it, without any truth. A policy that got
# worse is refused, and the phase is trained again with half the dose.

# %%
for one in run.rounds:
    for verdict in one.verdicts:
        print(f"round {one.number}, training {verdict.attempt}:", "kept" if verdict.accepted else verdict.faults)

# %% [markdown]
# ## A tree
#
# The policy wrote several answers to each prompt, sentence by sentence. Each sentence has a reward, and the worst
# were pruned (✗). Whole answers end with ■.

# %%
tree = next(iter(run.rounds[0].trees()))
print(tree)
print("\nbest: ", tree.best)
print("worst:", tree.worst)

# %% [markdown]
# A node knows its neighbours. Which sentence lost the most against its best sibling?

# %%
gaps = [
    (max(sibling.reward or 0.0 for sibling in node.parent.children) - node.reward, node)
    for tree in run.rounds[0].trees()
    for node in tree.nodes
    if node.parent is not None and node.reward is not None
]
gap, node = max(gaps, key=lambda item: item[0], default=(0.0, None))
if node is not None:
    print(f"{gap:.1f} below its best sibling:", node.text, "\n  after:", node.parent.answer_so_far)

# %% [markdown]
# ## The pairs
#
# The best answer of a tree is preferred to its worst. Iterating reads a batch at a time, however large the run is.

# %%
# The first one whose rejected answer was not cut off. Those with the largest margin mostly were.
pair = next(pair for pair in run.rounds[0].pairs() if pair.rejected.text.strip().endswith("."))
print(f"chosen   ({pair.chosen.reward:.1f}):", pair.chosen.text)
print(f"rejected ({pair.rejected.reward:.1f}):", pair.rejected.text)
print("its tree:", repr(run.rounds[0].tree(pair.id)))

# %% [markdown]
# As tables, of which you name the columns that you need: pandas, Arrow, and `datasets`. `to_arrow` and a streaming
# data set hold a batch in memory, a plain data set lies in the cache of `datasets`, and pandas holds all its rows.

# %%
frame = run.pairs().to_pandas(columns=["id", "policy_version", "chosen_reward", "rejected_reward"])
frame["margin"] = frame["chosen_reward"] - frame["rejected_reward"]
print(frame.groupby("policy_version")["margin"].describe())

# %%
num_nodes = num_kept = 0
for batch in run.trees().to_arrow(columns=["kept"]):
    num_nodes += batch.num_rows
    num_kept += batch.column("kept").true_count
print(f"{num_kept:,} of {num_nodes:,} nodes survived pruning")

# %%
for row in run.pairs().to_datasets(streaming=True, columns=["id", "prompt", "chosen"]).take(2):
    print(row["id"], row["prompt"][0]["content"], "->", row["chosen"][0]["content"])

# %% [markdown]
# ## What was set aside
#
# A prompt or picture that cannot be used never stops a run; it is set aside with the reason.

# %%
print(run.quarantine.by_reason().most_common() or "nothing was set aside")
