"""The config schema: every key with its type, range, default and meaning, as one frozen tree of sections.

Strict on purpose: an unknown key, a wrong type, a value out of range or two keys that contradict each other are
refused. How a config is read from a file, and what the user is told, is `csr_ray.config.load`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

# Ranks that vLLM makes room for (its `MaxLoRARanks`).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    dir: str = Field(
        "runs/csr", min_length=1, description="run folder; holds everything the run makes, and is what is resumed"
    )
    rounds: int = Field(3, ge=1, le=100, description="generate-score-pair-train-publish cycles")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random in the run")
    unit: int = Field(
        16, ge=1, description="prompts committed together; a killed run repeats at most this many a slot"
    )


class World(Section):
    """The embedded world. With `enabled`, `${world}` in other values is the folder it was built in."""

    enabled: bool = Field(False, description="build (or find in the cache) the embedded world first")
    seed: int = Field(0, ge=0, description="of scenes, splits and the tiny models")
    quick: bool = Field(False, description="train the tiny models for seconds only; for tests")
    num_train_images: int = Field(600, ge=8, description="scenes to roll out on")
    num_heldout_images: int = Field(1000, ge=8, description="scenes to evaluate on")


class Data(Section):
    prompts: str = Field(..., description="JSONL, JSON list, CSV or Parquet with id, image, prompt; or CSR's JSON")
    images: str | None = Field(None, description="folder the image names are relative to; default: the prompt file's")
    limit: int | None = Field(
        None, ge=1, description="use the first N prompts of the file (a picture is looked at when it is used)"
    )
    per_round: int | None = Field(
        None, ge=1, description="prompts a round, taken in turn; null: all of them every round, as the paper does"
    )


class Policy(Section):
    model: str = Field(..., min_length=1, description="Hugging Face folder (or hub id) that vLLM serves with images")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the weights while generating")
    max_model_len: int | None = Field(None, ge=64, description="tokens, image included; null: the model's own")


class Scorer(Section):
    model: str = Field(..., min_length=1, description="open_clip folder, or NAME or NAME/PRETRAINED of open_clip")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the towers")
    max_batch: int = Field(64, ge=1, description="sentences scored in one forward")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="longest wait for a batch to fill")


class Search(Section):
    """How the tree of answers grows. Unset values come from the preset; docs/search.md says when to use what."""

    preset: Literal["default", "paper", "reference"] = Field("default", description="values for keys left unset")
    expand: Literal["sample", "first_token", "diverse_greedy"] = Field(
        "sample",
        description="how a node gets its children. sample: at a temperature, seeded; as diverse as the policy, the "
        "one to train with. first_token: the most probable distinct first tokens, then greedy; repeatable, cheap. "
        "diverse_greedy: coupled greedy decodes that avoid each other's tokens; what the released code does",
    )
    width: int = Field(3, ge=1, le=64, description="nodes alive at a depth, best and worst together")
    keep_worst: int = Field(1, ge=0, description="of the width, how many are the worst (they feed the rejected side)")
    keep_all_up_to: int | None = Field(
        None, ge=1, description="a depth with at most so many open nodes is not pruned; null: width"
    )
    candidates: int = Field(5, ge=2, le=64, description="children of each live node")
    guide: Literal["reward", "self_score"] = Field("reward", description="what pruning sorts by")
    temperature: float = Field(1.0, gt=0, le=5, description="of the sampled sentences")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the sampled sentences")
    diversity_penalty: float = Field(
        3.0, ge=0, le=1e4, description="diverse_greedy: off a token's log-prob for each earlier child with it there"
    )
    sentence_end: Literal["sentence", "period_token"] = Field(
        "sentence",
        description="sentence: . ! or ? before space, newline or the end, but not in 3.5, Mr. or e.g.; period_token: "
        "the token of a period wherever it stands (released code)",
    )
    eos: Literal["stop", "continue"] = Field(
        "stop", description="whether the end-of-answer token ends a sentence, or decoding goes on to its end"
    )
    merge_equal: bool = Field(True, description="equal siblings count once")
    refuse_repeats: bool = Field(True, description="drop a child that repeats a sentence of its own answer")
    max_sentences: int = Field(8, ge=1, le=1024, description="depth limit")
    max_sentence_tokens: int = Field(74, ge=1, description="token limit of one sentence (the paper's 74)")
    max_answer_tokens: int = Field(512, ge=1, description="token limit of a whole answer")
    max_chars: int | None = Field(
        None, ge=1, description="an answer ends at so many characters, prompt and special tokens included"
    )

    @model_validator(mode="after")
    def _keep_fits_width(self) -> Search:
        if self.keep_worst > self.width:
            raise ValueError(
                f"keep_worst = {self.keep_worst} contradicts width = {self.width} (preset {self.preset}): "
                "keep_worst <= width"
            )
        if self.keep_all_up_to is not None and self.keep_all_up_to < self.width:
            raise ValueError(
                f"keep_all_up_to = {self.keep_all_up_to} contradicts width = {self.width} (preset {self.preset}): "
                "keep_all_up_to >= width"
            )
        return self


class Reward(Section):
    """R = weight * R_image + (1 - weight) * R_self, a sentence at a time (CSR section 3.1); see docs/reward.md."""

    weight: float = Field(0.9, ge=0, le=1, description="lambda: share of the image reward")
    self_score: Literal["geometric_mean", "product", "mean_logp"] = Field(
        "geometric_mean",
        description="100 exp(mean log p) (same scale as the image score), the paper's product, or mean log p",
    )
    count_penalty: bool = Field(False, description="whether the diversity penalty lowers the self score")
    floor_image: bool = Field(True, description="max(100 cos, 0) as image score, not 100 cos")
    blend: Literal["values", "sibling_ranks"] = Field(
        "values", description="blend the two scores, or their ranks among siblings (negated: rank 1 of n is -1/n)"
    )
    aggregate: Literal["mean", "sum", "mean_with_root"] = Field(
        "mean", description="sentences to answer; the paper's sum is hackable; mean_with_root: sum / (sentences + 1)"
    )
    cleaning: Literal["none", "released"] = Field(
        "none",
        description="released: score what the released code's cleaning leaves of a sentence (no hyphens, emoji or "
        "curly quotes), and leave out what it drops (under 4 characters, stuck, in some scripts) with all behind it",
    )


class Pairs(Section):
    min_margin: float | None = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="drop pairs whose rewards differ by no more than this; null: keep even ties",
    )


class Train(Section):
    streaming: bool = Field(
        False,
        description="false: train when the round's last rollout is finished, in an order that repeats; true: train a "
        "pair as soon as its unit is committed, while others grow, in an order that may differ from run to run; pays "
        "where generators and trainer have hardware of their own",
    )
    objective: Literal["sigmoid", "sigmoid_average", "ipo", "dpo_positive", "sft"] = Field(
        "sigmoid", description="DPO; on log-probs a token; IPO; DPO-Positive; the chosen answer alone"
    )
    beta: float = Field(0.1, gt=0, le=10, description="DPO temperature")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs taken to be the wrong way round")
    positive_penalty: float = Field(
        50.0, ge=0, description="dpo_positive: price of a nat by which a chosen answer falls below the reference"
    )
    nll_weight: float = Field(0.0, ge=0, description="adds this times -log p(chosen), summed; STIC: 1/1024")
    learning_rate: float = Field(5e-4, gt=0, le=1, description="peak, of the LoRA matrices")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after warm-up")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps that warm up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="clipping")
    epochs: int = Field(1, ge=1, description="passes over the round's pairs")
    batch_size: int = Field(8, ge=1, description="pairs an optimizer step, over all workers")
    micro_batch_size: int | None = Field(None, ge=1, description="pairs a forward and worker; null: all at once")
    lora_rank: int = Field(16, ge=1, le=1024, description="r")
    lora_alpha: int = Field(32, ge=1, description="alpha; the update is scaled by alpha / r")
    lora_targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="linear layers of the LANGUAGE model that get a LoRA",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the frozen weights while training")
    step: Literal["auto", "shared_prefix", "concatenated"] = Field(
        "auto", description="prompt and image once a pair, or TRL's two rows a pair; auto: the first, if it is exact"
    )
    pack_tokens: int | None = Field(
        None, ge=64, description="shared_prefix: pairs share rows of so many tokens; null: a padded row each"
    )
    reference: Literal["rollout", "recompute", "check"] = Field(
        "rollout",
        description="reference log-probs: the engine's own, a second forward, or the first held to it",
    )
    reference_sample: int = Field(16, ge=1, description="check: pairs a worker recomputes a round, at least")
    reference_tolerance: float = Field(
        0.05, gt=0, description="check: most nats a token by which the engine's log-prob may differ (bf16)"
    )
    max_length: int = Field(4096, ge=32, description="tokens of prompt, image and answer; longer pairs are dropped")
    gradient_checkpointing: bool = Field(False, description="trade time for memory")
    deepspeed_stage: Literal[0, 1, 2, 3] = Field(2, description="ZeRO stage; 0: DeepSpeed without partitioning")
    offload_optimizer: bool = Field(False, description="keep optimizer state in host memory (ZeRO 1 to 3)")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="save optimizer state every so many steps; a restarted group goes on from there"
    )
    restarts: int = Field(0, ge=0, description="times a run's train group is started again after a worker died")
    workers: int = Field(1, ge=1, le=1024, description="Ray Train workers")
    cpus_per_worker: float = Field(1, ge=0, description="Ray CPUs a worker")
    gpus_per_worker: float = Field(0, ge=0, description="Ray GPUs a worker")
    threads: int | None = Field(None, ge=1, description="torch threads a CPU worker; null: what the machine has")

    @model_validator(mode="after")
    def _batch_divides(self) -> Train:
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size = {self.batch_size} contradicts workers = {self.workers}: batch_size must be a multiple"
            )
        per_worker = self.batch_size // self.workers
        if self.micro_batch_size is not None and per_worker % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} contradicts batch_size = {self.batch_size}: it must "
                f"divide the {per_worker} pairs of a worker"
            )
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> Train:
        if self.label_smoothing and self.objective != "sigmoid":
            raise ValueError(
                f"label_smoothing = {self.label_smoothing} contradicts objective = {self.objective}: only sigmoid has"
            )
        if self.offload_optimizer and self.deepspeed_stage == 0:
            raise ValueError(
                "offload_optimizer = true contradicts deepspeed_stage = 0: offloading needs stage 1 to 3"
            )
        if self.streaming and self.checkpoint_steps is not None:
            raise ValueError(
                f"checkpoint_steps = {self.checkpoint_steps} contradicts streaming = true: a checkpoint counts "
                "pairs, and a stream that starts again may begin with others"
            )
        if self.pack_tokens is not None and self.step == "concatenated":
            raise ValueError(
                f"pack_tokens = {self.pack_tokens} contradicts step = concatenated: rows are packed by shared_prefix"
            )
        return self


class Generators(Section):
    min: int = Field(1, ge=1, description="generator actors to start")
    max: int = Field(1, ge=1, description="most generator actors; `min` are started, the pool does not grow yet")
    cpus: float = Field(1, ge=0, description="Ray CPUs each")
    gpus: float = Field(0, ge=0, description="Ray GPUs each (tensor parallel over them when above 1)")
    threads: int | None = Field(None, ge=1, description="OpenMP threads of a CPU engine; null: all cores but one")
    in_flight: int = Field(64, ge=1, description="prompts each works on at once")
    max_num_seqs: int = Field(256, ge=1, description="sequences the engine decodes at once")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of a CPU engine, GiB")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1, description="share of a GPU the engine takes")
    publish: Literal["merge", "adapter"] = Field(
        "merge",
        description="merge: all rounds' LoRAs go into the served weights, decoding pays nothing; adapter: the base "
        "stays as it is and their sum is one LoRA that vLLM swaps while running, at a cost for every token",
    )
    probe_tolerance: float = Field(
        0.05, gt=0, description="after a hand-over: most a token's log-prob may differ from the trainer's (bf16)"
    )
    chunk_mib: float = Field(16.0, gt=0, description="an adapter travels in chunks of so many MiB")
    hang_s: float = Field(600.0, gt=0, allow_inf_nan=False, description="a generator silent for so long is dead")

    @model_validator(mode="after")
    def _min_max(self) -> Generators:
        if self.max < self.min:
            raise ValueError(f"max = {self.max} contradicts min = {self.min}: max >= min")
        return self


class Scorers(Section):
    min: int = Field(1, ge=1, description="scorer actors to start")
    max: int = Field(1, ge=1, description="most scorer actors; `min` are started, the pool does not grow yet")
    cpus: float = Field(1, ge=0, description="Ray CPUs each")
    gpus: float = Field(0, ge=0, description="Ray GPUs each")
    threads: int = Field(1, ge=1, description="torch threads of a CPU scorer")

    @model_validator(mode="after")
    def _min_max(self) -> Scorers:
        if self.max < self.min:
            raise ValueError(f"max = {self.max} contradicts min = {self.min}: max >= min")
        return self


class Eval(Section):
    benchmarks: tuple[Literal["world", "pope", "chair"], ...] = Field(
        (), description="run before round 0 and after each round"
    )
    data: str | None = Field(None, description="folder of the benchmark's files (prompts, truth, questions, images)")
    limit: int | None = Field(None, ge=1, description="images to evaluate on; null: all")
    limit_between: int | None = Field(
        None, ge=1, description="the same after every round but the last; null: as many as before and after the run"
    )
    sampled: bool = Field(True, description="also describe at temperature 1 (the `_t1` figures)")
    max_tokens: int = Field(256, ge=1, description="token limit of an answer")

    @model_validator(mode="after")
    def _needs_data(self) -> Eval:
        if {"world", "chair"} <= set(self.benchmarks):
            raise ValueError("benchmarks: world contradicts chair: both describe the images of eval.data; name one")
        if self.benchmarks and self.data is None:
            raise ValueError("data = null contradicts benchmarks: name the folder with the benchmark's files")
        return self


class Config(Section):
    """Everything a run needs. `method` picks how answers are rolled out and what is made of them."""

    method: str = Field("csr", description="which alignment method runs: the name of a file in csr_ray/methods/")
    method_keys: SerializeAsAny[Section] = Field(
        Section(), description="the method's own keys; in a config they stand in the section that bears its name"
    )
    run: Run = Run()
    world: World = World()
    data: Data
    policy: Policy
    scorer: Scorer | None = None
    search: Search = Search()
    reward: Reward = Reward()
    pairs: Pairs = Pairs()
    train: Train = Train()
    generators: Generators = Generators()
    scorers: Scorers = Scorers()
    eval: Eval = Eval()

    def served_rank(self, *, phases_a_round: int = 1) -> int:
        """The rank that an engine with `generators.publish: adapter` makes room for: all phases' side by side.

        Raises:
            ValueError: there is no rank that large.
        """
        needed = self.train.lora_rank * self.run.rounds * phases_a_round
        fitting = [rank for rank in LORA_RANKS if rank >= needed]
        if not fitting:
            raise ValueError(
                f"generators.publish = adapter contradicts train.lora_rank = {self.train.lora_rank} and run.rounds = "
                f"{self.run.rounds}: their adapters together have rank {needed}, and the engine serves at most "
                f"{LORA_RANKS[-1]}; set generators.publish=merge"
            )
        return fitting[0]

    @model_validator(mode="after")
    def _adapters_fit(self) -> Config:
        if self.generators.publish == "adapter":
            self.served_rank()
        return self
