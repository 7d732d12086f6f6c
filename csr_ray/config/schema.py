"""The config schema: every key with its type, range, default and meaning, as one frozen tree of sections.

Strict on purpose: an unknown key, a wrong type, a value out of range or two keys that contradict each other are
refused. How a config is read from a file, and what the user is told, is `csr_ray.config.load`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializeAsAny, field_validator, model_validator

from csr_ray.records import REMOVED, UNK, Calibration, Contrast, Rescoring, WayToAsk
from csr_ray.redaction import has_credentials, without_credentials

# Ranks that vLLM makes room for (its `MaxLoRARanks`).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Beyond these a limit limits nothing, and was meant to be another value: the gate compares texts that a person would
# read, and a probability e^1000 times as large is none.
MOST_GATE_TOKENS, MOST_OF_A_LIMIT = 8192, 1000

# Marks of a key, or of a whole section of which single keys may say otherwise. An operational key may be another one
# each time a run is started: it says how the run is carried out. Every other key decides what the run computes, and a
# run folder of another value is refused.
OPERATIONAL: dict[str, JsonValue] = {"operational": True}
NOT_OPERATIONAL: dict[str, JsonValue] = {"operational": False}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    dir: str = Field(
        "runs/csr",
        min_length=1,
        json_schema_extra=OPERATIONAL,
        description="run folder, here or at a URL (s3://bucket/run); it holds everything the run makes, and the same "
        "folder given again is resumed",
    )
    rounds: int = Field(
        3,
        ge=1,
        le=1000,
        json_schema_extra=OPERATIONAL,
        description="how many rounds of generating, judging, training and publishing the run makes",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random in the run")
    unit: int = Field(
        16,
        ge=1,
        description="how many prompts are committed to disk together; a killed run repeats at most this many for "
        "each prompt that was under way",
    )
    grace_s: float = Field(
        10.0,
        ge=0,
        le=86400,
        allow_inf_nan=False,
        json_schema_extra=OPERATIONAL,
        description="seconds that a run which is told to stop (Ctrl-C, SIGTERM) waits for the prompts under way "
        "before it commits what is finished; a second signal stops it at once. Whoever kills after SIGTERM has to "
        "wait this long and about five seconds more: Kubernetes and Slurm wait 30 s, `ray job stop` only 3 s unless "
        "RAY_JOB_STOP_WAIT_TIME_S says more",
    )

    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = Field(
        (),
        json_schema_extra=OPERATIONAL,
        description="where the run's figures go besides TensorBoard's files, which are always in logs/tensorboard: "
        "any of wandb, mlflow and trackio, each by the extra of its name; where they go is said by these libraries' "
        "own variables (docs/tracking.md)",
    )
    trace: bool = Field(
        False,
        json_schema_extra=OPERATIONAL,
        description="write trace/round_NNN.json, which says what every actor did when; Perfetto and "
        "chrome://tracing open it (docs/tracking.md)",
    )


class World(Section):
    """The embedded world. With `enabled`, `${world}` in the config's other values stands for its folder."""

    enabled: bool = Field(False, description="build the embedded world before the run, or find it in the cache")
    seed: int = Field(0, ge=0, description="seed of the world's scenes, of its splits and of its tiny models")
    variant: int = Field(
        0,
        ge=0,
        description="which world: 0 is the demo's; another number draws other words, kinds, colours, picture size, "
        "prior and model shapes (docs/world.md)",
    )
    clip_steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps of the world's scorer; fewer make a weaker judge. null: as many as it needs "
        "(400 in the demo's world)",
    )
    quick: bool = Field(False, description="train the tiny models for seconds only; for tests")
    num_train_images: int = Field(600, ge=8, description="number of scenes to roll out on")
    num_heldout_images: int = Field(1000, ge=8, description="number of held-out scenes to evaluate on")


class Data(Section):
    prompts: str = Field(
        ...,
        description="prompt file: JSONL, a JSON list, CSV or Parquet with the columns id, image, prompt and, for "
        "methods that need a reference answer, truth; a WebDataset tar; the CSR authors' JSON as released; or a "
        "folder of such files, which are read in the order of their names",
    )
    reader: Literal["auto", "local", "ray"] = Field(
        "auto",
        json_schema_extra=OPERATIONAL,
        description="who reads the prompt files. local: the driver; ray: tasks on the cluster's nodes, which also "
        "look at the pictures before their prompts' turn; auto: ray from 64 MiB of files on. The prompts, their "
        "order and what is set aside are the same",
    )
    images: str | None = Field(
        None,
        description="folder that relative image names start from; null: the prompt file's own folder, or the "
        "folder `images` in it",
    )
    urls: bool = Field(
        False,
        description="whether images may be web pages (http, https), which every actor that needs one then fetches; "
        "only public addresses are asked, and a server that does not answer costs its prompt until the run is "
        "started again",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="use only the first N usable prompts of the file; whether an image can be read is not known "
        "before its prompt is rolled out",
    )
    per_round: int | None = Field(
        None,
        ge=1,
        description="prompts that a round uses, going on where the round before stopped; null: every round uses "
        "all of them, as in the paper",
    )


class Policy(Section):
    model: str = Field(
        ...,
        min_length=1,
        description="the vision-language model to improve: a Hugging Face folder, its URL (s3://bucket/model), or "
        "a hub id owner/name, that vLLM can serve with images",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="data type of the policy's weights while it generates"
    )
    max_model_len: int | None = Field(
        None, ge=64, description="longest sequence in tokens, image included; null: what the model itself allows"
    )
    visual_tokens: int | None = Field(
        None,
        ge=1,
        description="how many tokens of a picture the language model gets, in rollouts and in training: the tower's "
        "most similar tokens are merged until so many are left (LLaVA only); null: as many as the model was trained "
        "with, which are all unless its config.json says otherwise",
    )


class Scorer(Section):
    model: str = Field(
        ...,
        min_length=1,
        description="the CLIP model that scores sentences: an open_clip folder or its URL, hf-hub:OWNER/NAME, or "
        "open_clip's NAME/TAG or NAME/FILE. A TAG whose weights were trained under another activation than NAME "
        "computes is refused (OpenAI's need ViT-L-14-336-quickgelu/openai); a FILE does not say, so give NAME its "
        "-quickgelu where the weights need it",
    )
    dtype: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="numbers in which the image and text towers compute. float32: a score is the same whatever is "
        "scored with it, to 2e-7; tf32: float32, but a GPU rounds the factors of every product to 10 bits for speed, "
        "and a score is off by about 0.01 of 100 (a CPU does not round); bfloat16: off by about 0.1",
    )
    max_batch: int = Field(
        64,
        ge=1,
        description="a batch that holds this many sentences waits for no more requests before its forward pass",
    )
    max_wait_ms: float = Field(
        2.0, ge=0, le=1000, description="longest time that a smaller batch waits for more requests, in milliseconds"
    )


class Search(Section):
    """How the tree of sentences grows. Unset values come from the preset; docs/search.md says when to use what."""

    preset: Literal["default", "paper", "reference"] = Field(
        "default",
        description="which values the keys of search, reward and pairs take that are not set: this project's, the "
        "paper's, or the released code's",
    )
    expand: Literal["sample", "first_token", "diverse_greedy"] = Field(
        "sample",
        description="how a node of the tree gets its children. sample: samples at a temperature, seeded; as "
        "diverse as the policy, the one to train with. first_token: the most probable distinct first "
        "tokens, each continued greedily; repeatable and cheap. diverse_greedy: coupled greedy "
        "decodes that avoid each other's tokens; what the released code does",
    )
    width: int = Field(
        3, ge=1, le=64, description="how many nodes of a depth are kept and continued, best and worst together"
    )
    keep_worst: int = Field(
        1, ge=0, description="how many of the kept nodes are the worst ones; they lead to the rejected answers"
    )
    keep_all_up_to: int | None = Field(
        None,
        ge=1,
        description="a depth with at most this many unfinished nodes is not pruned; null: the same as width",
    )
    candidates: int = Field(5, ge=2, le=64, description="children that each kept node gets")
    guide: Literal["reward", "self_score"] = Field(
        "reward", description="what nodes are pruned by: the reward, or the policy's own score alone"
    )
    temperature: float = Field(1.0, gt=0, le=5, description="sampling temperature of expand = sample")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling of expand = sample: sample among the most probable tokens that together "
        "have this probability",
    )
    diversity_penalty: float = Field(
        3.0,
        ge=0,
        le=1e4,
        description="expand = diverse_greedy: how much a token's log-prob is lowered for each earlier sibling "
        "charged for that token at that position, in nats",
    )
    sentence_end: Literal["sentence", "period_token"] = Field(
        "sentence",
        description="sentence: at . ! or ? before white space or the end of the answer, but not in 3.5, Mr. or "
        "e.g.; period_token: at the token of a period wherever it stands, as in the released code",
    )
    eos: Literal["stop", "continue"] = Field(
        "stop",
        description="stop: the end-of-answer token ends the answer; continue: decoding goes on past it to the end "
        "of the sentence, as in the released code",
    )
    merge_equal: bool = Field(
        True, description="merge siblings that have the same text and end in the same way into one"
    )
    refuse_repeats: bool = Field(True, description="drop a child that repeats a sentence of the answer so far")
    max_sentences: int = Field(
        8, ge=1, le=1024, description="most sentences of an answer, which is the depth of the tree"
    )
    max_sentence_tokens: int = Field(74, ge=1, description="most tokens of one sentence (74 in the paper)")
    max_answer_tokens: int = Field(512, ge=1, description="most tokens of a whole answer")
    max_chars: int | None = Field(
        None,
        ge=1,
        description="an answer ends once prompt and answer together have this many characters, special tokens "
        "included; null: no such limit",
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
    """A sentence is worth weight * R_image + (1 - weight) * R_self (CSR section 3.1); docs/reward.md says why."""

    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the paper's lambda (there 0.9, on scales of its own): share of the image score in the reward; "
        "the policy's own score has the rest",
    )
    self_score: Literal["geometric_mean", "product", "mean_logp"] = Field(
        "geometric_mean",
        description="the policy's own score of a sentence. geometric_mean: 100 exp(mean log p), on the scale of "
        "the image score; product: of the token probabilities, as in the paper; mean_logp: mean log p "
        "of a token, as in the released code",
    )
    count_penalty: bool = Field(
        False,
        description="subtract search.diversity_penalty from the log-probs that the self score is made of, as the "
        "released code does",
    )
    floor_image: bool = Field(True, description="the image score is max(100 cos, 0) as in the paper, not 100 cos")
    image_unit: Literal["nats", "points"] = Field(
        "nats",
        description="blend = values: in what the image score counts. nats: ten points for each nat of the scorer's "
        "own logits, which are the cosine times its logit scale, so that a CLIP whose cosines lie close together has "
        "as much to say as one whose lie apart; points: 100 cos as it is, as in the paper",
    )
    blend: Literal["values", "sibling_ranks"] = Field(
        "values",
        description="values: blend the two scores; sibling_ranks: blend their ranks among siblings, negated so "
        "that more is better (rank r of n counts -r/n), as the released code does",
    )
    aggregate: Literal["stretched_mean", "mean", "sum", "mean_with_root"] = Field(
        "stretched_mean",
        description="how the rewards of an answer's sentences become the answer's. stretched_mean: their mean, its "
        "distance from the middle of the tree's rewards multiplied by the root of their number, so that true "
        "sentences add up; mean favours short answers; sum is the paper's and favours long ones; mean_with_root, the "
        "released code's, is the sum over one more than the number of sentences",
    )
    cleaning: Literal["none", "released"] = Field(
        "none",
        description="none: CLIP scores the sentence as it is; released: as the released code cleans it (no "
        "hyphens, emoji or curly quotes), and a sentence that it drops (under 4 characters, stuck in "
        "a repetition, in some scripts) is not scored, nor is anything behind it",
    )


class Pairs(Section):
    min_margin: float | None = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="make no pair of answers whose rewards differ by no more than this; null: keep even ties",
    )


class Train(Section):
    streaming: bool = Field(
        False,
        description="false: train when the last rollout is finished, in an order that repeats; true: train on a "
        "pair as soon as its unit is committed, while other prompts are still rolled out, in an order "
        "that may differ from run to run; this pays where generators and trainer have hardware of "
        "their own",
    )
    objective: Literal[
        "sigmoid", "sigmoid_average", "ipo", "dpo_positive", "dpo_noise", "sft", "weighted_sft", "two_views"
    ] = Field(
        "sigmoid",
        description="sigmoid: DPO; sigmoid_average: DPO on log-probs averaged over tokens; ipo: IPO; "
        "dpo_positive: DPO-Positive; dpo_noise: DPO against two rejected answers, the pair's and what a noisy "
        "copy of its picture would have the policy say; sft: the likelihood of the chosen answer alone, as a "
        "mean over the batch's tokens; weighted_sft: as a mean over its answers, each averaged over its tokens. "
        "A method may name its own; two_views, for one: the likelihood of an answer with two views of its picture, "
        "and that they agree (method: vancl)",
    )
    beta: float = Field(
        0.1, gt=0, le=10, description="beta of the objective: how strongly the policy is held to the reference"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="objective = sigmoid: share of pairs whose preference is taken to be the wrong way round",
    )
    positive_penalty: float = Field(
        50.0,
        ge=0,
        description="objective = dpo_positive: factor on each nat by which the log-prob of a chosen answer falls "
        "below the reference's",
    )
    noise_step: int = Field(
        500,
        ge=0,
        le=999,
        description="objective = dpo_noise: step of a diffusion of 1000 after which the noisy pictures are taken",
    )
    noise_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="objective = dpo_noise: share of the loss that is against the noisy picture's tokens",
    )
    noise_collision: Literal["keep", "second_best"] = Field(
        "keep",
        description="objective = dpo_noise: what is rejected where the noisy picture's likeliest token is that of "
        "the chosen answer. keep: that token all the same (paper); second_best: the likeliest other one",
    )
    noise_overflow: Literal["clamp", "wrap"] = Field(
        "clamp",
        description="objective = dpo_noise: what becomes of noisy pixels that are no colour any more. clamp: the "
        "nearest one that is (paper); wrap: as bytes they come round from the other end, as in the released code, "
        "which is harsher noise",
    )
    rejected_logp: Literal["labels", "top1_or_2"] = Field(
        "labels",
        description="what the loss takes for a rejected answer's log-prob. labels: that of its own tokens (papers); "
        "top1_or_2: at each of its places that of the likeliest other token, as the released trainers of SIMA and "
        "STIC do, so that it is the words before each place alone that come from the rejected answer",
    )
    view_weight: float = Field(
        1.0,
        ge=0,
        description="objective = two_views: factor of the answer's likelihood with the second view of its picture",
    )
    consistency_weight: float = Field(
        1.0,
        ge=0,
        description="objective = two_views: factor of KL(second view || plain view), by which the plain view learns "
        "to see what the second one shows",
    )
    nll_weight: float = Field(
        0.0,
        ge=0,
        description="factor of -log p(chosen answer), summed over its tokens, that joins the objective of pairs, so "
        "that a policy which unlearns the rejected answers keeps the chosen ones; STIC has a key of its own for it",
    )
    dose: Literal["auto", "epochs"] = Field(
        "auto",
        description="how much a phase is trained. auto: until pairs that are held out of it show that it is enough "
        "(target_margin, max_divergence, patience), at a learning rate that the first round finds; epochs: as often "
        "over its pairs as `epochs` says, which is what naming `epochs` alone means, too",
    )
    target_margin: float = Field(
        1.25,
        gt=0,
        description="dose = auto: a phase is over when the log-ratio of chosen against rejected answers has grown by "
        "so many nats an answer, as a mean over the held-out pairs",
    )
    margin_decay: float = Field(
        0.5,
        gt=0,
        le=1,
        description="dose = auto: the target_margin of a round is so many times that of the round before, so that a "
        "run of many rounds does not drift away from its base",
    )
    max_divergence: float | None = Field(
        None,
        gt=0,
        description="dose = auto: a phase is over when the held-out answers, chosen and rejected ones alike, have "
        "become less likely by so many nats an answer; null: as many as the margin that is asked of the phase, or "
        "2.5 where rejected answers have no part in the objective",
    )
    patience: int = Field(
        2,
        ge=1,
        description="dose = auto: a phase is over after so many looks at the held-out pairs at which their loss was "
        "no lower than before; it ends with the weights of the look at which it was lowest",
    )
    held_out: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="dose = auto: share of a phase's pairs that are not trained on, but looked at. Where fewer than "
        "8 would be, none are, and the phase passes once over its pairs",
    )
    max_epochs: int = Field(
        6, ge=1, description="dose = auto: a phase is over after so many passes over its pairs at the latest"
    )
    epochs: int | None = Field(
        None, ge=1, description="dose = epochs: how often a phase's training passes over its pairs (1 if not said)"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="peak learning rate of the LoRA matrices; null: by a rule of lora_alpha and the number of "
        "layers, which dose = auto corrects in the first round by what it sees",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="dose = epochs: course of the learning rate after the warm-up; a dose that is found ends when "
        "it is enough, so its rate stays",
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="share of the optimizer steps (dose = auto: of one pass) over which the learning rate rises to "
        "its peak",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients of a larger norm are scaled down to this one")
    batch_size: int = Field(8, ge=1, description="pairs in one optimizer step, over all workers")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="pairs in one forward pass of one worker; null: all of the worker's share of the batch at once",
    )
    lora_rank: int = Field(16, ge=1, le=1024, description="rank r of the LoRA matrices")
    lora_alpha: int = Field(32, ge=1, description="alpha of the LoRA: its update is scaled by alpha / r")
    lora_targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get a LoRA; only those of the language model, never the "
        "vision tower's",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="data type of the weights while training, also of the LoRA, of which the optimizer keeps a copy "
        "in float32; bfloat16 runs on a CPU, too, mostly slower there",
    )
    step: Literal["auto", "shared_prefix", "concatenated"] = Field(
        "auto",
        description="shared_prefix: prompt and image go through the model once for both answers of a pair; "
        "concatenated: once for each, as TRL does it; auto: shared_prefix if it gives this model the "
        "same log-probs",
    )
    pack_tokens: int | None = Field(
        None,
        ge=64,
        description="step = shared_prefix: put pairs together into rows of at most this many tokens; null: each "
        "pair has a padded row of its own",
    )
    reference: Literal["rollout", "recompute", "check"] = Field(
        "rollout",
        description="where the reference's log-probs come from. rollout: the engine's own, returned while "
        "sampling; recompute: a second forward pass without the adapter; check: as rollout, and some "
        "pairs are recomputed and compared",
    )
    reference_sample: int = Field(
        16, ge=1, description="reference = check: pairs that each worker recomputes in a round, at least"
    )
    reference_tolerance: float = Field(
        0.05,
        gt=0,
        description="reference = check: the run stops where engine and trainer differ by more than this, in nats "
        "a token; the default suits bfloat16",
    )
    max_length: int = Field(
        4096, ge=32, description="tokens of prompt, image and answer together; pairs with a longer answer are dropped"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass, which takes longer and needs less memory"
    )
    deepspeed_stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO stage of DeepSpeed; 0: DeepSpeed without partitioning"
    )
    offload_optimizer: bool = Field(False, description="keep the optimizer state in host memory (ZeRO stages 1 to 3)")
    checkpoint_s: float | None = Field(
        300.0,
        gt=0,
        json_schema_extra=OPERATIONAL,
        description="save the optimizer state at the end of a step if the last time is so many seconds ago; a train "
        "group or a run that is started again goes on from there; null: not by time",
    )
    checkpoint_steps: int | None = Field(
        None,
        ge=1,
        json_schema_extra=OPERATIONAL,
        description="save the optimizer state after every N steps, too; null: only by checkpoint_s",
    )
    restarts: int = Field(
        3,
        ge=0,
        json_schema_extra=OPERATIONAL,
        description="how many times in one cycle the train group is started again, from its last checkpoint, after "
        "one of its processes died or fell silent; 0: the run stops",
    )
    silent_s: float = Field(
        10.0,
        ge=3,
        json_schema_extra=OPERATIONAL,
        description="a train worker that has not said for so long that it lives is taken for dead; a thread of its "
        "own says so every second, also in a long step",
    )
    hang_s: float = Field(
        1800.0,
        ge=10,
        json_schema_extra=OPERATIONAL,
        description="a train worker that lives, but has finished no step for so long while it does not wait for "
        "examples, is taken for dead; has to be longer than a step and than loading and rehearsing the model",
    )
    workers: int = Field(1, ge=1, le=1024, json_schema_extra=OPERATIONAL, description="number of Ray Train workers")
    cpus_per_worker: float = Field(
        1, ge=0, json_schema_extra=OPERATIONAL, description="Ray CPUs that each worker reserves"
    )
    gpus_per_worker: float = Field(
        0,
        ge=0,
        le=1,
        json_schema_extra=OPERATIONAL,
        description="share of a GPU that each worker reserves; it uses one, whatever more there is",
    )
    accelerator_type: str | None = Field(
        None,
        min_length=1,
        json_schema_extra=OPERATIONAL,
        description="kind of GPU that all workers sit on, as Ray names it (A100, L4); null: any. Workers on "
        "different kinds would go at the pace of the slowest",
    )
    threads: int | None = Field(
        None,
        ge=1,
        json_schema_extra=OPERATIONAL,
        description="torch threads of a worker; null: on the CPU as many as the machine has cores, on a GPU a "
        "worker's share of them, at most 8",
    )
    loader_threads: int | None = Field(
        None,
        ge=0,
        json_schema_extra=OPERATIONAL,
        description="threads of a worker that read and decode the next batches while one is trained; 0: none, each "
        "batch is made when it is needed; null: none on the CPU, on a GPU a worker's share of the cores, at "
        "most 4",
    )

    @model_validator(mode="before")
    @classmethod
    def _epochs_are_a_dose(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("epochs") is not None and "dose" not in given:
            return {**given, "dose": "epochs"}
        if given.get("dose") == "epochs" and given.get("epochs") is None:
            return {**given, "epochs": 1}
        return given

    @field_validator("target_margin", "max_divergence")
    @classmethod
    def _can_be_reached(cls, nats: float | None) -> float | None:
        if nats is not None and nats > MOST_OF_A_LIMIT:
            raise ValueError(
                f"{nats:g} nats an answer are never reached; set at most {MOST_OF_A_LIMIT:,}, or train.dose=epochs "
                "for a fixed number of passes"
            )
        return nats

    @model_validator(mode="after")
    def _dose_is_one(self) -> Train:
        if self.dose == "auto" and self.epochs is not None:
            raise ValueError(
                f"epochs = {self.epochs} contradicts dose = auto: leave epochs out, or set dose = epochs"
            )
        return self

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
        if self.objective == "two_views":
            raise ValueError("objective = two_views: the method vancl alone has second views, and names it itself")
        if self.rejected_logp != "labels" and self.objective in ("dpo_noise", "sft", "weighted_sft", "two_views"):
            raise ValueError(
                f"rejected_logp = {self.rejected_logp} contradicts objective = {self.objective}: it has no rejected "
                "answer, or one more"
            )
        if self.offload_optimizer and self.deepspeed_stage == 0:
            raise ValueError(
                "offload_optimizer = true contradicts deepspeed_stage = 0: offloading needs stage 1 to 3"
            )
        if self.pack_tokens is not None and self.step == "concatenated":
            raise ValueError(
                f"pack_tokens = {self.pack_tokens} contradicts step = concatenated: rows are packed by shared_prefix"
            )
        return self


class Replicated(Section):
    """Limits of actors that are replaced when they die."""

    start_s: float = Field(
        1800.0,
        gt=0,
        allow_inf_nan=False,
        description="one that does not serve within this many seconds of its start is ended and started anew",
    )
    silent_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="one whose process gives no sign of life for this many seconds is taken for dead; all are asked "
        "for one every two seconds, whether they have work or not",
    )
    hang_s: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="one that gives signs of life, but whose work makes no step for this many seconds, is taken for "
        "dead as well; sooner where its steps have been short: after 20 times the longest so far, 10 s at least",
    )
    restarts: int = Field(
        8,
        ge=0,
        description="how often in an hour each is replaced; whatever kills it more often than that is no accident",
    )
    idle_s: float = Field(
        120.0,
        gt=0,
        allow_inf_nan=False,
        description="one beyond `min` that has had nothing to do for this many seconds, also while the policy is "
        "trained, is let go, so that an autoscaler may take its node away",
    )


class Generators(Replicated):
    model_config = ConfigDict(json_schema_extra=OPERATIONAL)

    min: int = Field(1, ge=1, description="how many generator actors are started, and are always kept")
    max: int = Field(
        1,
        ge=1,
        description="most generator actors there may be. More than `min` are started while so many prompts are left "
        "that they pay, and the cluster has room for them or its autoscaler makes room",
    )
    cpus: float = Field(1, ge=0, description="Ray CPUs that each generator reserves")
    gpus: float = Field(
        0,
        ge=0,
        description="Ray GPUs that each generator reserves: a whole number, over which the model is split (tensor "
        "parallel), or a fraction below 1, to share a GPU; then gpu_memory_utilization may not be larger",
    )
    accelerator_types: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="kinds of GPU, as Ray names them, of the first generator, the second and so on, and then from "
        "the beginning again; [L4]: all of them sit on L4s; empty: any",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="OpenMP threads of an engine; null: on the CPU one less than the machine has cores, beside a "
        "GPU up to 4",
    )
    in_flight: int | None = Field(
        None,
        ge=1,
        description="most prompts that each generator works on at once; null: a quarter of max_num_seqs, which keeps "
        "all sequences busy. Fewer are begun if the KV cache holds fewer, or if prefixes fall out of it",
    )
    max_num_seqs: int = Field(256, ge=1, description="sequences that the engine decodes at once")
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens that go through the model in one step, prompts and image tokens included; null: "
        "8192 on a GPU, the engine's own choice on a CPU. Fewer save a GPU's memory",
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="size of the KV cache of an engine on the CPU, in GiB")
    gpu_memory_utilization: float = Field(
        0.85, gt=0, le=1, description="share of a GPU's memory that the engine takes"
    )
    publish: Literal["merge", "adapter"] = Field(
        "merge",
        json_schema_extra=NOT_OPERATIONAL,  # it says what engine and trainer compute once there is an adapter
        description="merge: the LoRAs of all rounds are merged into the served weights, and decoding costs "
        "nothing more; adapter: the base stays as it is and their sum is one LoRA that vLLM swaps "
        "while running, which costs time for every token",
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0,
        description="after a hand-over, the most by which a generator's log-prob of a probe answer may differ "
        "from the trainer's, in nats a token; null: what rounding in policy.dtype and train.dtype explains, which "
        "grows with the square root of the answer's tokens",
    )
    chunk_mib: float = Field(
        16.0, gt=0, description="size of the chunks in which an adapter travels to the generators, in MiB"
    )
    call_s: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="a prompt that a generator has had for this many seconds is taken from it and tried again; after "
        "the third time it is set aside",
    )
    publish_s: float = Field(
        900.0,
        gt=0,
        allow_inf_nan=False,
        description="a generator that has not loaded and proved new weights after this many seconds is replaced",
    )

    @property
    def most_in_flight(self) -> int:
        """Prompts that each generator is sent at once.

        A tree asks for a handful of sequences at its root, for more later, and for none while it is scored; with a
        quarter as many trees as sequences the engine is never short of work.
        """
        return self.in_flight or max(1, self.max_num_seqs // 4)

    @model_validator(mode="after")
    def _gpus_can_be_had(self) -> Generators:
        if self.gpus > 1 and not float(self.gpus).is_integer():
            raise ValueError(
                f"gpus = {self.gpus:g}: the model is split over whole GPUs; set a whole number, or a fraction below 1"
            )
        if 0 < self.gpus < min(1.0, self.gpu_memory_utilization):
            raise ValueError(
                f"gpus = {self.gpus:g} contradicts gpu_memory_utilization = {self.gpu_memory_utilization:g}: that is "
                f"a share of the whole GPU, and the rest belongs to the actors beside this one; set "
                f"gpu_memory_utilization={round(0.9 * self.gpus, 3):g}, or gpus=1"
            )
        return self

    @model_validator(mode="after")
    def _min_max(self) -> Generators:
        if self.max < self.min:
            raise ValueError(f"max = {self.max} contradicts min = {self.min}: max >= min")
        return self


class Scorers(Replicated):
    model_config = ConfigDict(json_schema_extra=OPERATIONAL)

    min: int = Field(1, ge=1, description="how many scorer actors are started, and are always kept")
    max: int = Field(
        1,
        ge=1,
        description="most scorer actors there may be. More than `min` are started, one at a time, when all of them "
        "have computed nearly all of the time for 20 s, and the cluster has room",
    )
    cpus: float = Field(1, ge=0, description="Ray CPUs that each scorer reserves")
    gpus: float = Field(
        0,
        ge=0,
        le=1,
        description="Ray GPUs that each scorer reserves; 0: it computes on the CPU, which suits a tiny CLIP (a dry "
        "run says how long a large one takes); 0.1 beside a generator with 0.9 is meant for a ViT-L",
    )
    accelerator_type: str | None = Field(
        None, min_length=1, description="kind of GPU, as Ray names it, of the nodes that scorers sit on; null: any"
    )
    threads: int = Field(1, ge=1, description="torch threads of a scorer on the CPU")

    @model_validator(mode="after")
    def _min_max(self) -> Scorers:
        if self.max < self.min:
            raise ValueError(f"max = {self.max} contradicts min = {self.min}: max >= min")
        return self


_Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class GpuKindKeys(Section):
    """What a GPU of some kind has and costs, where csr-ray plan does not know it or should not believe its list."""

    memory_gb: _Positive | None = Field(None, description="GB of its memory")
    tflops: _Positive | None = Field(None, description="TFLOP/s of dense products in bfloat16")
    memory_gb_per_s: _Positive | None = Field(None, description="GB/s of its memory")
    usd_per_hour: _Price | None = Field(None, description="US dollars that an hour of it costs")


class Cluster(Section):
    """How a run uses the cluster that it is on."""

    model_config = ConfigDict(json_schema_extra=OPERATIONAL)

    layout: Literal["given", "auto", "disaggregated", "colocated", "cpu"] = Field(
        "given",
        description="who gets how many GPUs. given: as generators.min and .gpus, scorers.min and .gpus, "
        "train.workers and .gpus_per_worker say; the others set these from the GPUs there are when the run starts. "
        "disaggregated: engines and train workers have GPUs of their own; colocated: they use the same GPUs in "
        "turns; cpu: nobody has one; auto: cpu without a GPU, colocated on one, disaggregated on more",
    )
    autoscales: bool = Field(
        False,
        description="whether an autoscaler adds nodes where actors have no place; Ray does not say. true: what there "
        "is no room for is waited for; false: it is refused before anything starts",
    )
    wait_s: float = Field(
        1800.0,
        gt=0,
        allow_inf_nan=False,
        description="the run ends if there has been no room in the cluster for this many seconds for one of the "
        "actors that it begins with or, later on, for any of a kind; what is waited for is said every half minute",
    )
    gpu_kinds: dict[str, GpuKindKeys] = Field(
        {},
        description="by the names that Ray has for kinds of GPU (H100), what one has and costs, where the list of "
        "`csr-ray plan` does not know it or is wrong: memory_gb, tflops, memory_gb_per_s, usd_per_hour; "
        "for example cluster.gpu_kinds.H100.usd_per_hour=2.5. Nothing but plans and costs follows from it",
    )
    cpu_usd_per_hour: float | None = Field(
        None,
        ge=0,
        description="US dollars that an hour of one CPU costs; null: GPUs alone are counted",
    )

    @model_validator(mode="after")
    def _counts_what_is_there(self) -> Cluster:
        if self.autoscales and self.layout in ("auto", "disaggregated", "colocated"):
            raise ValueError(
                f"layout = {self.layout} contradicts autoscales = true: it counts the GPUs there are, which an "
                "autoscaler changes; set layout=given, and say with generators, scorers and train what to ask for"
            )
        return self


class Gate(Section):
    """After every phase the new policy answers some of the run's own prompts; if it got worse it is refused."""

    enabled: bool = Field(
        True,
        description="compare the policy after a phase with the one before. One that is worse is not handed over: the "
        "policy before stays, and the phase is trained again with half the dose",
    )
    prompts: int = Field(
        64,
        ge=8,
        le=10_000,
        description="prompts that are answered for it, twice each (the most likely answer, and one drawn); those "
        "whose pairs are held out of the training, where there are so many",
    )
    retries: int = Field(
        2,
        ge=0,
        le=10,
        description="how often a refused phase is trained again; then the run ends early, and at once where the "
        "examples themselves are at fault",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of an answer, at most; null: search.max_answer_tokens, or the method's own "
        "max_answer_tokens where it has one, at most 512",
    )
    reward_loss: float = Field(
        0.02,
        ge=0,
        description="the mean reward, and the mean image score alone, may fall by so many standard deviations of "
        "the prompts' own, beyond chance",
    )
    length_growth: float = Field(
        1.05,
        ge=1,
        description="the answers may become so many times as long, beyond chance. What prefers long answers shows "
        "here alone; raise it where answers are meant to grow",
    )
    length_factor: float = Field(
        1.5, gt=1, description="the answers may become so many times as short, beyond chance"
    )
    share_rise: float = Field(
        0.01,
        ge=0,
        le=1,
        description="the share of answers that repeat themselves, or are empty or cut, may rise by so much, beyond "
        "chance",
    )
    self_bleu_rise: float = Field(
        0.15,
        ge=0,
        le=1,
        description="the likeness of the answers to each other (self-BLEU, 0 to 1) may rise by so much, beyond "
        "chance",
    )

    @field_validator("max_tokens")
    @classmethod
    def _answers_end(cls, max_tokens: int | None) -> int | None:
        if max_tokens is not None and max_tokens > MOST_GATE_TOKENS:
            raise ValueError(
                f"{max_tokens:,} tokens are longer than any answer that would be compared; set at most "
                f"{MOST_GATE_TOKENS:,}, or leave it out"
            )
        return max_tokens

    @field_validator("reward_loss", "length_growth", "length_factor")
    @classmethod
    def _limits_can_be_passed(cls, limit: float) -> float:
        if limit > MOST_OF_A_LIMIT:
            raise ValueError(
                f"{limit:g} would refuse nothing; set at most {MOST_OF_A_LIMIT:,}, or gate.enabled=false for no gate"
            )
        return limit


class Judge(Section):
    """A judge that reads and answers in words, over an endpoint that speaks as OpenAI's does."""

    url: str = Field(
        min_length=1,
        json_schema_extra=OPERATIONAL,
        description="where the endpoint is, up to the version (https://api.openai.com/v1, http://localhost:8000/v1)",
    )
    model: str = Field(min_length=1, description="the model that judges, as the endpoint calls it")
    key_env: str | None = Field(
        None,
        json_schema_extra=OPERATIONAL,
        description="name of the environment variable that holds the endpoint's key, as OPENAI_API_KEY; the key "
        "itself never stands in a config; null: none is sent",
    )
    concurrency: int = Field(
        8, ge=1, le=1024, json_schema_extra=OPERATIONAL, description="questions that are on their way at once"
    )
    requests_per_minute: float | None = Field(
        None, gt=0, json_schema_extra=OPERATIONAL, description="most questions a minute; null: no limit of ours"
    )
    timeout_s: float = Field(
        120.0, gt=0, le=3600, json_schema_extra=OPERATIONAL, description="seconds that one answer may take"
    )
    time_limit_s: float | None = Field(
        None,
        gt=0,
        json_schema_extra=OPERATIONAL,
        description="seconds that all answers of one start may take; then it ends, and goes on when it is started "
        "again; null: as long as it takes",
    )
    retries: int = Field(
        6,
        ge=0,
        le=100,
        json_schema_extra=OPERATIONAL,
        description="how often a question is asked again after 429, 5xx, a time-out or an answer that is none",
    )
    retry_wait_s: float = Field(
        1.0,
        gt=0,
        le=60,
        json_schema_extra=OPERATIONAL,
        description="seconds before a question is asked again for the first time; twice as many each further time, "
        "at most a minute, unless the endpoint itself says how long",
    )
    max_cost_usd: float | None = Field(
        None,
        gt=0,
        json_schema_extra=OPERATIONAL,
        description="US dollars that the judge may cost, earlier starts of the same work included; needs both "
        "prices; null: counted, but not limited",
    )
    usd_per_million_input_tokens: float | None = Field(
        None, ge=0, json_schema_extra=OPERATIONAL, description="price of what the judge reads; null: not known"
    )
    usd_per_million_output_tokens: float | None = Field(
        None, ge=0, json_schema_extra=OPERATIONAL, description="price of what the judge writes; null: not known"
    )

    @model_validator(mode="after")
    def _can_be_used(self) -> Judge:
        # What does not look like a variable's name may be the key itself, so it is not repeated.
        if self.key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):
            raise ValueError(
                "key_env: not the name of an environment variable in capital letters; put the key into one, as "
                "OPENAI_API_KEY, and name that"
            )
        if not re.match(r"https?://[^/\s]", self.url):
            raise ValueError(
                f"url = {without_credentials(self.url)!r}: give one that begins with http:// or https://"
            )
        if has_credentials(self.url):
            raise ValueError(
                f"url = {without_credentials(self.url)!r}: a key in a URL would stand in files; put it into an "
                "environment variable, and name that with key_env"
            )
        prices = (self.usd_per_million_input_tokens, self.usd_per_million_output_tokens)
        if self.max_cost_usd is not None and None in prices:
            raise ValueError(
                f"max_cost_usd = {self.max_cost_usd} needs prices: set usd_per_million_input_tokens and "
                "usd_per_million_output_tokens, too"
            )
        return self


class Eval(Section):
    benchmarks: tuple[Literal["world", "pope", "chair"], ...] = Field(
        (), description="benchmarks to run before the first round and after every round"
    )
    data: str | None = Field(
        None, description="folder of the benchmarks' files: prompts, truth, questions and images"
    )
    limit: int | None = Field(None, ge=1, description="evaluate on the first N images only; null: on all")
    limit_between: int | None = Field(
        None,
        ge=1,
        description="images after every round but the last, to save time; null: as many as before the first round "
        "and after the last",
    )
    sampled: bool = Field(
        True, description="describe the images at temperature 1, too, which gives the metrics that end in `_t1`"
    )
    max_tokens: int = Field(256, ge=1, description="most tokens of an answer that describes an image")
    ask: Literal["plain", "describe_first"] = Field(
        "plain",
        description="plain: the question alone; describe_first: the policy describes the image first, and reads its "
        "own description with the question (STIC's describe-and-respond), which costs two answers",
    )
    chair_synonyms: str | None = Field(
        None,
        description="the published synonym file (data/synonyms.txt of LisaAnne/Hallucination), with which chair "
        "counts as the published scripts do; null: the package's own table, beside no published figure",
    )
    chair_instances: tuple[str, ...] = Field(
        (),
        description="with chair_synonyms: COCO's instances_val2014.json, of train as well where its images are asked",
    )
    chair_captions: tuple[str, ...] = Field(
        (),
        description="with chair_synonyms: COCO's captions_val2014.json, of train as well where its images are asked",
    )
    chair_form: Literal["original", "lure"] = Field(
        "original",
        description="with chair_synonyms: original (Rohrbach et al.), or lure (LURE, SIMA), which counts a "
        "hallucinated word once a caption and takes its words in another way; figures of one are none of the other",
    )

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _can_be_asked_within_a_run(cls, names: object) -> object:
        for name in names if isinstance(names, list | tuple) else ():
            if isinstance(name, str) and name not in ("world", "pope", "chair"):
                raise ValueError(
                    f"{name} cannot be asked within a run; allowed: world, pope, chair. Others are asked of the "
                    f"model that a run leaves: csr-ray eval --model RUN_DIR/model --benchmark {name}"
                )
        return names

    @model_validator(mode="after")
    def _needs_data(self) -> Eval:
        if {"world", "chair"} <= set(self.benchmarks):
            raise ValueError("benchmarks: world contradicts chair: both describe the images of eval.data; name one")
        if self.benchmarks and self.data is None:
            raise ValueError("data = null contradicts benchmarks: name the folder with the benchmark's files")
        return self


class Decoding(Section):
    """How the policy's answers are decoded where they are measured: against what it would say without the picture.

    Zhang et al. 2024, arXiv 2403.05262; docs/vdd.md says what each way is, and what it costs.
    """

    kind: Literal["plain", "vdd", "rescore", "post_hoc"] = Field(
        "plain",
        description="plain: as the policy itself says it. vdd: each token by logits from which those without the "
        "picture are taken off. rescore: of decoding.samples answers drawn the one that such logits favour. "
        "post_hoc: yes/no and multiple choice by the choices' probabilities against those without the picture; other "
        "questions are answered as with plain",
    )
    without: Literal["none", "unk", "both", "noise"] = Field(
        "none",
        description="what stands for the picture where it is not shown. none: nothing; unk: the unknown token; both: "
        "none and unk together; noise: the picture under diffusion noise (VCD)",
    )
    noise_step: int = Field(
        500,
        ge=0,
        le=999,
        description="without = noise: step of the noise schedule, of 1000; 999 leaves almost nothing",
    )
    alpha: float = Field(
        1.0,
        ge=0,
        le=100,
        description="vdd, rescore: how much is taken off: (1 + alpha) l - alpha l'; l' without the picture",
    )
    cutoff: float = Field(
        0.1,
        ge=0,
        le=1,
        description="vdd: the paper's beta, the adaptive plausibility cut-off: a token less likely than this share "
        "of the most likely one, by the policy alone, is never taken (0.2 in the released scripts for POPE and MMMU)",
    )
    samples: int = Field(5, ge=1, le=64, description="rescore: how many answers are drawn")
    temperature: float = Field(1.0, gt=0, le=5, description="rescore: at which temperature they are drawn")
    affine: Literal["divide", "subtract"] = Field(
        "divide",
        description="post_hoc: divide the choices' probabilities by those without the picture, or subtract these",
    )
    top_tokens: int = Field(
        10, ge=1, le=1000, description="post_hoc: of how many of the most likely first tokens the choices are read"
    )
    smoothing: float = Field(
        1e-4, gt=0, le=1, description="post_hoc: what is added to each probability without the picture"
    )
    rollouts: bool = Field(
        False,
        description="kind = vdd: a method's whole answers are decoded so, too, where it asks for answers in its "
        "rollouts; trees of sentences know no such decoding",
    )

    @model_validator(mode="after")
    def _rollouts_have_a_decoding(self) -> Decoding:
        if self.rollouts and self.kind != "vdd":
            raise ValueError(f"rollouts = true contradicts kind = {self.kind}: rollouts are decoded by vdd alone")
        return self

    @property
    def changes(self) -> tuple[str, ...]:
        """What takes the picture's place (`change` of `csr_ray.records.Picture`)."""
        return {
            "none": (REMOVED,),
            "unk": (UNK,),
            "both": (REMOVED, UNK),
            "noise": (f"noise:{self.noise_step}",),
        }[self.without]

    @property
    def contrast(self) -> Contrast:
        return Contrast(changes=self.changes, alpha=self.alpha, cutoff=self.cutoff)

    @property
    def in_short(self) -> Contrast | Rescoring | Calibration | None:
        """What of the section counts with this kind; None: plain."""
        if self.kind == "plain":
            return None
        if self.kind == "vdd":
            return self.contrast
        if self.kind == "rescore":
            return Rescoring(
                changes=self.changes, alpha=self.alpha, samples=self.samples, temperature=self.temperature
            )
        return Calibration(changes=self.changes, affine=self.affine, top=self.top_tokens, smoothing=self.smoothing)


class MethodRounds(Section):
    """One of several methods that a run has in turn.

    Attributes:
        rounds: how many it has before the next one's turn; None: it is the last, and has all that are left.
        keys: the method's own.
    """

    name: str
    rounds: int | None
    keys: SerializeAsAny[Section]


def turn_of(round_index: int, *, rounds: Sequence[int]) -> tuple[int, int]:
    """Whose turn a round is, and the how-manyth of its own rounds that one is, both from 0.

    Args:
        rounds: how many each but the last one has; the last one has all that are left.
    """
    for place, num in enumerate(rounds):
        if round_index < num:
            return place, round_index
        round_index -= num
    return len(rounds), round_index


class Config(Section):
    """Everything a run needs. `method` picks how answers are rolled out and what is made of them.

    Of several methods `method` is their names with commas between them; `of_each_method` has what each of them reads.
    """

    method: str = Field(
        "csr",
        description="which alignment method runs: the name of a file in csr_ray/methods/. Or a list of such names, "
        "[sima, csr], of which each goes on with the policy that the one before it left. A name alone has one round, "
        "{sima: 2} has two; run.rounds is their sum unless it is given, and then the last method has what is left",
    )
    method_keys: SerializeAsAny[Section] = Field(
        Section(), description="the method's own keys; in a config they stand in the section that bears its name"
    )
    sequence: tuple[MethodRounds, ...] = Field((), description="the methods, if there are several")
    run: Run = Run()
    world: World = World()
    data: Data
    policy: Policy
    scorer: Scorer | None = None
    search: Search = Search()
    reward: Reward = Reward()
    pairs: Pairs = Pairs()
    train: Train = Train()
    gate: Gate = Gate()
    generators: Generators = Generators()
    scorers: Scorers = Scorers()
    cluster: Cluster = Cluster()
    eval: Eval = Eval()
    judge: Judge | None = None
    decoding: Decoding = Decoding()

    @property
    def of_each_method(self) -> tuple[Config, ...]:
        """This config as each of its methods reads it, in their order: with that method alone, and its keys."""
        if not self.sequence:
            return (self,)
        return tuple(
            self.model_copy(update={"method": turn.name, "method_keys": turn.keys, "sequence": ()})
            for turn in self.sequence
        )

    @property
    def rounds_before_the_last(self) -> tuple[int, ...]:
        """How many rounds each method but the last one has; the last one has all that are left."""
        return tuple(turn.rounds for turn in self.sequence if turn.rounds is not None)

    def method_of_round(self, round_index: int) -> str:
        """The name of the method whose turn a round is."""
        if not self.sequence:
            return self.method
        return self.sequence[turn_of(round_index, rounds=self.rounds_before_the_last)[0]].name

    @property
    def way_to_ask(self) -> WayToAsk:
        """How the questions of an evaluation are put, and their answers decoded."""
        return WayToAsk(decoding=self.decoding.in_short, describe_first=self.eval.ask == "describe_first")

    def served_rank(self, *, phases_a_round: int = 1) -> int:
        """The rank that an engine with `generators.publish: adapter` makes room for: the sum over all phases.

        It is rounded up to the next rank that vLLM has (`LORA_RANKS`).

        Raises:
            ValueError: vLLM has no rank that large.
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
