"""Every key of a run's configuration, in typed sections.

Nothing here imports torch, so a login node can check a configuration in a second.
"""

from __future__ import annotations

import os
import re
from dataclasses import field
from typing import Annotated, ClassVar

from omegaconf import MISSING

from mer_dist.config.limits import (
    FRACTION,
    Count,
    Fraction,
    FromZero,
    Limit,
    Share,
    WholeFromZero,
    at_least,
    one_of,
)
from mer_dist.config.section import section
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import EMOTIONS, plain
from mer_dist.core.registry import ENCODERS, FORMATS, FUSION_MODELS

VIEWS = Limit("[face] or [face, frame]", lambda views: list(views) in (["face"], ["face", "frame"]))


def _key(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def path(section: str, key: str, value: str) -> str:
    """The path with ``~`` at its beginning replaced by the user's home.

    Raises:
        UserError: it contains a shell variable, which is not expanded here, or begins with ``~`` and an
            unknown user.
    """
    if found := re.search(r"\$\{?([A-Za-z_]\w*)\}?", value):
        written = value.replace(found[0], f"${{oc.env:{found[1]}}}")
        home = f"{value.replace(found[0], '~')!r}, " if found[1] == "HOME" and not found.start() else ""
        raise UserError(
            f"{_key(section, key)} is {value!r}, and variables of the shell are not filled in here; write "
            f"{home}{written!r}, or the path itself"
        )
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        raise UserError(
            f"{_key(section, key)} is {value!r}, and there is no such user; ~/ is your home, and a folder here "
            f"that is called so is './{value}'"
        )
    return expanded


def _distinct(section: str, teachers: list[str]) -> None:
    if len(set(teachers)) < len(teachers):
        raise UserError(f"{section}.teachers names one twice: {', '.join(teachers)}")


@section("run")
class RunConfig:
    """Where the run lies, and its processes."""

    folder: str = MISSING
    """Everything that the run writes is below this folder."""
    processes: Count = 1
    """Processes that ``mer-dist run`` starts for finetune and extract; usually one per GPU."""
    accelerate: str = ""
    """Accelerate launch file for finetune; empty: this machine with ``processes`` in the layout below."""
    layout: Annotated[str, one_of("auto", "ddp", "zero2", "zero3")] = "auto"
    """How the processes of a fine-tuning share the model. ``ddp``: plain data parallelism, each holds all of
    it; ``zero2``: gradients and optimizer are split; ``zero3``: the weights, too. ``auto``: the layout with
    the least communication that fits the GPUs of this machine; without a GPU ``zero3``."""
    threads: Count = 1
    """CPU threads of torch in each process; two busy processes with several threads stall."""
    checkpoint_minutes: FromZero = 15.0
    """Minutes between two checkpoints of a fine-tuning; 0: only if it is stopped."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept during a training; all are removed when it is complete. If a disk
    damages one, training resumes from the one before; with 1 it starts again."""
    timeout_minutes: Annotated[float, at_least(0.1)] = 30.0
    """Minutes that ranks of a fine-tuning wait for one another before they count one as dead."""
    seed: WholeFromZero = 0
    """Of everything that is drawn, but for the folds: weights, order, dropout, bootstrap."""

    def __post_init__(self):
        self.folder = path("run", "folder", self.folder)
        self.accelerate = path("run", "accelerate", self.accelerate)
        if self.accelerate and self.layout != "auto":
            raise UserError(
                f"run.layout is {self.layout}, and run.accelerate names a launch file, which sets the layout "
                "itself; leave one of them out"
            )


@section("corpus")
class CorpusConfig:
    """The clips and their labels."""

    format: str = "mer2024"
    """``mer2024``, ``mer2025``, ``mer2026``: the challenge folder as distributed; ``manifest``: one CSV file; or one
    of ``plugins``."""
    path: str = ""
    """The challenge's folder, or the CSV ``name,video,audio,transcript,label,split``."""
    language: Annotated[str, one_of("chinese", "english", "both")] = "chinese"
    """Of the challenges' transcripts: ``chinese``, ``english``, or ``both``, one after the other."""
    encoding: str = "utf-8"
    """Of the tables of the corpus and of ``fuse.labels``, by its Python name: gb18030 (includes GBK), big5,
    shift_jis, euc_kr, cp1252 … A byte order mark in a file (UTF-16, UTF-8) has precedence."""
    labels: list[str] = field(default_factory=lambda: list(EMOTIONS))
    """The label set, in the order used by every file the run writes."""

    def __post_init__(self):
        FORMATS.check("corpus.format", self.format)
        self.path = path("corpus", "path", self.path)
        try:
            "name".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise UserError(
                f"corpus.encoding is {self.encoding!r}, which is no encoding of text; valid are "
                "utf-8, gb18030, big5, shift_jis, euc_kr, cp1252 and others of Python"
            ) from None
        if len(set(self.labels)) < len(self.labels) or len(self.labels) < 2:
            raise UserError("corpus.labels must name at least two labels, each once")
        first: dict[str, str] = {}
        for label in self.labels:
            if (other := first.setdefault(plain(label), label)) != label:
                raise UserError(
                    f"corpus.labels has {other!r} and {label!r}, which differ in capitals, "
                    "blanks or forms of letters alone; keep one: tables may use both"
                )


@section("shard")
class ShardConfig:
    """How clips are decoded and stored."""

    workers: Count = 2
    """Processes that decode clips."""
    clips: Count = 1000
    """A shard is closed at this many clips or at ``mebibytes``, whichever comes first."""
    mebibytes: Count = 256
    """The other limit of a shard, of its tar file."""
    frames: Count = 16
    """Frames per clip, evenly spaced."""
    image_size: Annotated[int, at_least(16)] = 224
    """Side in pixels of the stored square frames."""
    views: Annotated[list[str], VIEWS] = field(default_factory=lambda: ["face"])
    """``[face, frame]``: the whole frames are stored beside the faces, for extractors with ``view: frame``."""
    faces: Annotated[str, one_of("cascade", "openface", "none")] = "cascade"
    """``cascade``: OpenCV's detector; ``openface``: crops in ``openface``; ``none``: whole frame."""
    openface: str = ""
    """OpenFace's faces, ``<name>/<name>.npy`` as the challenges distribute them, or ``<name>/<name>_aligned/*.bmp|jpg``
    as it writes them; for ``faces: openface``."""
    faceless: Annotated[str, one_of("frame", "mask")] = "frame"
    """Of a clip in which no face is known, store the ``frame``, or ``mask`` its video."""
    remove: bool = False
    """Remove clips that left the corpus from the run, even if they are most of its clips, or most of its
    labelled ones. ``false``: ``shard`` then refuses before it changes anything, because a list of only the
    new clips, another corpus and an unmounted disk look the same."""
    without_media: bool = False
    """Go on even if almost no video or audio of the corpus can be read (less than a tenth of the clips).
    ``false``: ``shard`` then refuses before it changes anything."""

    def __post_init__(self):
        self.openface = path("shard", "openface", self.openface)
        if self.faces == "openface" and not self.openface:
            raise UserError("shard.faces is 'openface', so shard.openface must name its folder")


@section("folds")
class FoldConfig:
    """How the labelled clips are split for cross-validation."""

    count: Annotated[int, at_least(2)] = 5
    """Number of folds; each fine-tuned extractor gets one adapter for each, and one of all clips."""
    seed: int = 0
    """Another seed puts other clips together."""
    group: str = ""
    """A regular expression over clip names; clips whose first group is equal share a fold."""

    def __post_init__(self):
        try:
            groups = re.compile(self.group).groups
        except re.error as error:
            raise UserError(f"folds.group is not a regular expression: {error}") from None
        if self.group and groups < 1:
            raise UserError("folds.group needs one (group) around the part that clips share")


@section("finetune.lora")
class LoraConfig:
    """The adapters of ``finetune.method: lora``."""

    rank: Count = 16
    """Rank of the two matrices that are added to a weight."""
    alpha: float = 32.0
    """Their product is scaled by ``alpha / rank``."""
    dropout: Fraction = 0.05
    """Probability that an input of an adapter is dropped in training."""
    targets: list[str] = field(default_factory=list)
    """Module names; empty: the default of the extractor's family (Baichuan: W_pack)."""


@section("finetune")
class FinetuneConfig:
    """How an extractor is fine-tuned on the labelled clips."""

    RENAMED: ClassVar = {"budget": "batch_budget"}
    method: Annotated[str, one_of("lora", "full")] = "lora"
    """``lora`` trains adapters and the head; ``full`` trains every weight."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    epochs: Count = 5
    """Times that every training clip is seen; the weights of the best epoch are kept."""
    batch: Count = 32
    """Clips per optimizer step, over all processes."""
    batch_budget: FromZero = 0.0
    """Tokens, frames or seconds of audio in one pass of a process, padding included; gradients are
    accumulated over the passes of ``batch``. 0: the family's default for the device."""
    micro_batch: WholeFromZero = 0
    """Largest number of clips in one pass of a process; 0: no limit but the budget. Without ``batch_budget``
    it replaces the budget: passes of so many clips, long or short."""
    learning_rate: FromZero = 1e-4
    """Highest learning rate, that of the step at which ``warmup`` ends."""
    weight_decay: FromZero = 0.01
    """Of AdamW."""
    warmup: Fraction = 0.1
    """Fraction of all steps with rising learning rate; then it falls as a cosine."""
    clip_norm: Annotated[float, at_least(1e-6)] = 1.0
    """Gradients of a larger norm are scaled down to it."""
    label_smoothing: Fraction = 0.0
    """Part of a target that is spread evenly over the labels."""
    class_weights: Annotated[str, one_of("none", "balanced")] = "none"
    """``none``, or ``balanced``: the weight of a class is inverse to its count."""
    validation: Fraction = 0.1
    """Fraction of the training clips held out to choose the best epoch; never the adapter's fold. Clips of one group
    (``folds.group``) or one recording are held out together."""
    cross_fit: bool = True
    """``false``: one adapter trained on every labelled clip and none per fold, for a corpus whose
    unlabelled clips are a fixed test split. Labelled clips then have no features to fuse."""
    precision: Annotated[str, one_of("bf16", "fp32")] = "bf16"
    """Of the forward and backward passes; the same for all extractors of a run."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    deterministic: bool = False
    """On a GPU: only deterministic operations, so that an interrupted training ends with the same bits as an
    uninterrupted one. Slower; CPUs are deterministic anyway."""


@section("")
class ExtractorConfig:
    """A pretrained model that turns clips into features; NAME is yours."""

    RENAMED: ClassVar = {"budget": "batch_budget"}
    family: str = MISSING
    """``text``, ``audio``, ``image`` or ``video`` (windows of frames): models that transformers knows
    (docs/encoders.md); ``clip`` (frames), ``hubert`` (audio), ``baichuan`` (transcripts); or one that ``plugins`` adds."""
    path: str = MISSING
    """Folder of the model in the Hugging Face layout."""
    precision: Annotated[str, one_of("auto", "fp32", "tf32", "bf16", "fp16")] = "auto"
    """Of extraction: ``fp32``, ``tf32`` (float32 with factors that a GPU may round to 10 bits), ``bf16`` or
    ``fp16``. ``auto``: bf16 on a GPU that supports it, fp32 elsewhere; a run that is moved keeps its
    precision."""
    quantize: Annotated[str, one_of("none", "nf4", "int8")] = "none"
    """``nf4`` or ``int8``: hold the base weights in 4 or 8 bits (bitsandbytes); for LoRA only."""
    view: Annotated[str, one_of("face", "frame")] = "face"
    """image, video, clip: ``face``, or ``frame`` with ``shard.views: [face, frame]``."""
    frames: WholeFromZero = 0
    """image, video, clip: number of stored frames to use, evenly spaced; 0: all."""
    window: Annotated[float, at_least(0.1)] = 10.0
    """audio, hubert: longer audio is cut into windows of this many seconds; Whisper and the Audio Spectrogram
    Transformer have windows of their own."""
    max_tokens: Count = 512
    """text, baichuan: longer transcripts are cut."""
    prompt: str = ""
    """text: what the model reads in place of the bare transcript, with {transcript} in it, as
    "How does one feel who says: {transcript}"; only the transcript's own tokens are embedded."""
    layers: list[int] = field(default_factory=list)
    """text, audio: the hidden states whose sum is the embedding: 0 is the input of the first layer, -1 the output
    of the model; empty: the last four, as in the challenge's baseline."""
    pooling: str = ""
    """text: ``mean`` over the transcript's tokens, ``first`` token (an encoder's CLS) or ``last`` token of the
    transcript; image: ``projected`` into the space of words, ``pooled`` by the model, ``class`` token, or ``mean``
    over the patches; video: ``class`` or ``mean``; empty: the model's convention."""
    batch_budget: FromZero = 0.0
    """Tokens, frames or seconds of audio in one forward pass of extraction, padding included; 0: the
    family's default for the device."""
    split: bool = False
    """``extract`` splits the weights over all its processes (ZeRO-3), for a model that fits no single GPU."""
    finetune: FinetuneConfig | None = None
    """Absent: the extractor stays frozen."""

    def __post_init__(self):
        ENCODERS.check("family", self.family)
        self.path = path("", "path", self.path)
        if self.quantize != "none" and self.finetune and self.finetune.method == "full":
            raise UserError("quantize: quantised weights cannot be trained in full; use finetune.method lora")
        if self.prompt and self.prompt.count("{transcript}") != 1:
            raise UserError(f"prompt is {self.prompt!r}; it must contain {{transcript}} once")

    @property
    def finetuning(self) -> FinetuneConfig:
        """``finetune`` of an extractor with this section.

        Raises:
            ValueError: the extractor is frozen.
        """
        if self.finetune is None:
            raise ValueError(f"{self.family} at {self.path} is not fine-tuned")
        return self.finetune


@section("extract")
class ExtractConfig:
    """Which features are stored."""

    frame_level: bool = True
    """Also store one embedding per frame or token, not only one per clip."""
    storage: Annotated[str, one_of("fp32", "fp16")] = "fp32"
    """Precision of the stored features."""
    frozen: bool = True
    """Also extract the frozen features of fine-tuned extractors, for comparison."""
    anchors: WholeFromZero = 128
    """Unlabelled clips seen by every adapter of an extractor, to align their spaces."""


@section("fuse")
class FuseConfig:
    """The model that predicts labels from features, and its training."""

    RENAMED: ClassVar = {"guide": "query_modality", "context": "cross_attention", "shortcut": "linear_skip"}
    labels: str = ""
    """CSV ``name,label[,split]`` or ``name,discrete``, or the baseline's ``label-6way.npz``, whose
    ``train_corpus`` is labelled; used instead of the shard index (imported features)."""
    sets: list[str] = field(default_factory=list)
    """Feature sets to fuse; empty: one of every extractor, fine-tuned if there is one."""
    level: Annotated[str, one_of("utterance", "frame")] = "utterance"
    """``utterance``: one token per clip and set; ``frame``: at most ``tokens``, pooled."""
    tokens: Count = 8
    """With ``level: frame``: most tokens of a clip and set."""
    model: str = "agt"
    """``agt``, or a baseline trained in the same way: ``attention`` (the challenge baseline's fusion),
    ``mlp`` (all embeddings concatenated), ``linear`` (the same without hidden layers); or the registered name
    of your own model."""
    query_modality: Annotated[str, one_of("audio", "video", "text")] = "audio"
    """agt: the modality whose tokens are the queries of the cross-attention."""
    cross_attention: bool = True
    """agt: Context-Based Transformers; ``false``: every modality goes to the fusion unchanged."""
    fusion: Annotated[str, one_of("gating", "concatenate", "mean")] = "gating"
    """agt: ``gating`` (Adaptive Multimodal Fusion), ``concatenate`` or ``mean``."""
    linear_skip: bool = True
    """agt: a linear path from the features to the logits, parallel to the transformer."""
    width: Count = 64
    """Numbers in a token inside the model; a multiple of ``heads``."""
    heads: Count = 4
    """Attention heads."""
    dropout: list[float] = field(default_factory=lambda: [0.1, 0.4, 0.7])
    """In [0, 1), not for linear. Of several values, each fold uses the one of highest likelihood on a
    further fold, with models that left out both: less informative clips need more. With two folds the
    middle value."""
    feature_dropout: Fraction = 0.5
    """Not for attention: probability that a single feature is hidden."""
    modality_dropout: Fraction = 0.1
    """agt: probability that a modality is hidden from a training clip that has others."""
    seeds: Count = 3
    """Models of each fold that differ by their random numbers; their probabilities are averaged."""
    epochs: Count = 30
    """Passes over the training clips in each round."""
    batch: Count = 32
    """Clips in a training step of one model."""
    learning_rate: Annotated[float, at_least(1e-9)] = 2e-3
    """Highest learning rate: it rises over a tenth of the steps, and falls as a cosine."""
    weight_decay: FromZero = 0.05
    """Of AdamW."""
    label_smoothing: Fraction = 0.05
    """Part of a target that is spread evenly over the labels."""

    def __post_init__(self):
        self.labels = path("fuse", "labels", self.labels)
        FUSION_MODELS.check("fuse.model", self.model)
        for name in self.sets:
            try:
                FeatureSetId.parse(name)
            except UserError as error:
                raise UserError(f"fuse.sets: {error}") from None
        if len(set(self.sets)) < len(self.sets):
            raise UserError(f"fuse.sets names a feature set twice: {', '.join(self.sets)}")
        for chance in self.dropout:
            FRACTION.check("fuse.dropout", chance)
        if not self.dropout:
            raise UserError("fuse.dropout needs at least one value, as [0.3]")
        if self.width % self.heads:
            raise UserError(f"fuse.width {self.width} must be a multiple of fuse.heads {self.heads}")


@section("self_train")
class SelfTrainConfig:
    """Rounds of training on the models' own labels of unlabelled clips."""

    rounds: WholeFromZero = 2
    """Rounds of pseudo-labels after the supervised round 0; 0 turns self-training off."""
    rule: Annotated[str, one_of("quota", "threshold", "precision", "consensus")] = "quota"
    """``quota``: the most confident clips of each class, in the proportion of the classes; ``threshold``:
    all that reach ``confidence``; ``precision``: all that reach their class's threshold, learned on
    held-out clips so that ``precision`` of its predictions are right; ``consensus``: as
    ``quota``, by what models and ``teachers`` say together, without the clips on which they disagree,
    unless the teachers are ``sure``. The last two need three folds."""
    quota: Share = 0.5
    """Fraction of the unlabelled clips that the last round selects by the rules ``quota`` and
    ``consensus``, and that one of its epochs uses by any rule; earlier rounds less, in even steps."""
    confidence: Fraction = 0.5
    """Probability below which a clip is never selected, whatever the rule. It is calibrated on models
    that left out two folds, one per pair; with two folds it is uncalibrated."""
    precision: Fraction = 0.8
    """Fraction of a class's predictions that must be right: lower end of the interval on held-out clips."""
    teachers: list[str] = field(default_factory=list)
    """Outside labellers for the rule ``consensus``, by the names that ``mer-dist import-answers`` gave them."""
    sure: Fraction = 0.9
    """Calibrated probability from which ``teachers`` overrule the models."""
    weight: Share = 0.5
    """Weight of a pseudo-labelled clip relative to a labelled one; times its confidence."""
    start: Annotated[str, one_of("scratch", "warm")] = "scratch"
    """``scratch``: each round trains new models; ``warm``: it continues those of the round before."""
    patience: WholeFromZero = 0
    """Stop when the out-of-fold WAF has not risen for so many rounds in a row; 0: run all."""

    def __post_init__(self):
        if (self.rule == "consensus") != bool(self.teachers):
            raise UserError("self_train.teachers belongs to self_train.rule: consensus, and is needed there")
        _distinct("self_train", self.teachers)


@section("vote")
class VoteConfig:
    """How the rounds and linear probes become one answer."""

    RENAMED: ClassVar = {"probes": "scorer_feedback"}
    kind: Annotated[str, one_of("soft", "hard")] = "soft"
    """``soft``: weighted mean of the members' probabilities; ``hard``: weighted votes of their
    predictions. The weights come from out-of-fold predictions."""
    prior: Annotated[str, one_of("estimate", "given", "probed", "none")] = "estimate"
    """``estimate`` from the unlabelled clips, ``given`` by the user, ``probed`` from scores of constant
    predictions, or ``none``: no correction, plain argmax."""
    answer: Annotated[str, one_of("vote", "best")] = "vote"
    """The row of the result table that becomes ``answer.csv``: ``vote``, or ``best``: the one with the best
    out-of-fold WAF, or the simplest within one standard error of it."""
    teachers: list[str] = field(default_factory=list)
    """Outside labellers that join the vote, by the names that ``mer-dist import-answers`` gave them."""
    given: dict[str, float] = field(default_factory=dict)
    """label: its proportion; with ``prior: given``."""
    scorer_feedback: dict[str, float] = field(default_factory=dict)
    """label: a scorer's WAF in percent for predicting it for every clip; with ``prior: probed``.
    One label may be left out. The rules of a challenge may forbid such probing."""
    names: str = ""
    """CSV with a column ``name``: the clips of ``answer.csv``, in this order. The prior is then
    estimated for these clips. Empty: all unlabelled clips."""

    def __post_init__(self):
        _distinct("vote", self.teachers)
        self.names = path("vote", "names", self.names)
        for key, kind in (("given", "given"), ("scorer_feedback", "probed")):
            if (self.prior == kind) != bool(getattr(self, key)):
                raise UserError(f"vote.{key} belongs to vote.prior: {kind}, and is needed there")
        if below := {label: share for label, share in self.given.items() if share < 0}:
            raise UserError(f"vote.given must be shares, and none of them below 0: {below}")
        total = sum(self.given.values())
        if self.given and abs(total - 1) > 0.01:
            raise UserError(f"vote.given must be shares that sum to 1; they sum to {total:g}")


@section("report")
class ReportConfig:
    clips: WholeFromZero = 40
    """Clips that ``report.html`` shows, in all; 0: none."""
    sound: Annotated[str, one_of("embed", "link", "none")] = "embed"
    """Of these clips: ``embed`` it in the page, ``link`` files beside the page, or ``none``."""
