"""Every key of a run's configuration, in typed sections.

Nothing here imports torch, so a login node can check a configuration in a second.
"""

from __future__ import annotations

import os
import re
from dataclasses import field
from typing import ClassVar

from omegaconf import MISSING

from mer_dist.config.section import section
from mer_dist.core.errors import UserError
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import EMOTIONS, plain
from mer_dist.core.registry import ENCODERS, FORMATS, FUSION_MODELS


def _key(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def one_of(section: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{_key(section, key)} is {value!r}; it must be one of: {', '.join(allowed)}")


def at_least(section: str, key: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"{_key(section, key)} is {value}; it must be at least {least}")


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


def _fraction(section: str, key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{_key(section, key)} is {value}; it must be in [0, 1)")


def _distinct(section: str, teachers: list[str]) -> None:
    if len(set(teachers)) < len(teachers):
        raise UserError(f"{section}.teachers names one twice: {', '.join(teachers)}")


@section
class RunConfig:
    folder: str = MISSING
    """Everything that the run writes is below this folder."""
    processes: int = 1
    """Processes that ``mer-dist run`` starts for finetune and extract; usually one per GPU."""
    accelerate: str = ""
    """Accelerate launch file for finetune; empty: this machine with ``processes`` in the layout below."""
    layout: str = "auto"
    """How the processes of a fine-tuning share the model. ``ddp``: plain data parallelism, each holds all of
    it; ``zero2``: gradients and optimizer are split; ``zero3``: the weights, too. ``auto``: the layout with
    the least communication that fits the GPUs of this machine; without a GPU ``zero3``."""
    threads: int = 1
    """CPU threads of torch in each process; two busy processes with several threads stall."""
    checkpoint_minutes: float = 15.0
    """Minutes between two checkpoints of a fine-tuning; 0: only if it is stopped."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept during a training; all are removed when it is complete. If a disk
    damages one, training resumes from the one before; with 1 it starts again."""
    timeout_minutes: float = 30.0
    """Minutes that ranks of a fine-tuning wait for one another before they count one as dead."""
    seed: int = 0

    def __post_init__(self):
        self.folder = path("run", "folder", self.folder)
        self.accelerate = path("run", "accelerate", self.accelerate)
        for key in ("processes", "keep_checkpoints"):
            at_least("run", key, getattr(self, key), 1)
        at_least("run", "checkpoint_minutes", self.checkpoint_minutes, 0)
        at_least("run", "timeout_minutes", self.timeout_minutes, 0.1)
        one_of("run", "layout", self.layout, ("auto", "ddp", "zero2", "zero3"))
        if self.accelerate and self.layout != "auto":
            raise UserError(
                f"run.layout is {self.layout}, and run.accelerate names a launch file, which sets the layout "
                "itself; leave one of them out"
            )
        at_least("run", "threads", self.threads, 1)
        at_least("run", "seed", self.seed, 0)


@section
class CorpusConfig:
    format: str = "mer2024"
    """``mer2024``, ``mer2025``, ``mer2026``: the challenge folder as distributed; ``manifest``: one CSV file; or one
    of ``plugins``."""
    path: str = ""
    """The challenge's folder, or the CSV ``name,video,audio,transcript,label,split``."""
    language: str = "chinese"
    """Of the challenges' transcripts: ``chinese``, ``english``, or ``both``, one after the other."""
    encoding: str = "utf-8"
    """Of the tables of the corpus and of ``fuse.labels``, by its Python name: gb18030 (includes GBK), big5,
    shift_jis, euc_kr, cp1252 … A byte order mark in a file (UTF-16, UTF-8) has precedence."""
    labels: list[str] = field(default_factory=lambda: list(EMOTIONS))
    """The label set, in the order used by every file the run writes."""

    def __post_init__(self):
        FORMATS.check("corpus.format", self.format)
        self.path = path("corpus", "path", self.path)
        one_of("corpus", "language", self.language, ("chinese", "english", "both"))
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


@section
class ShardConfig:
    workers: int = 2
    """Processes that decode clips."""
    clips: int = 1000
    """A shard is closed at this many clips or at ``mebibytes``, whichever comes first."""
    mebibytes: int = 256
    frames: int = 16
    """Frames per clip, evenly spaced."""
    image_size: int = 224
    """Side in pixels of the stored square frames."""
    faces: str = "cascade"
    """``cascade``: OpenCV's detector; ``openface``: crops in ``openface``; ``none``: whole frame."""
    openface: str = ""
    """OpenFace's faces, ``<name>/<name>.npy`` as the challenges distribute them, or ``<name>/<name>_aligned/*.bmp|jpg``
    as it writes them; for ``faces: openface``."""
    faceless: str = "frame"
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
        for key in ("workers", "clips", "mebibytes", "frames"):
            at_least("shard", key, getattr(self, key), 1)
        at_least("shard", "image_size", self.image_size, 16)
        one_of("shard", "faces", self.faces, ("cascade", "openface", "none"))
        one_of("shard", "faceless", self.faceless, ("frame", "mask"))
        if self.faces == "openface" and not self.openface:
            raise UserError("shard.faces is 'openface', so shard.openface must name its folder")


@section
class FoldConfig:
    count: int = 5
    seed: int = 0
    group: str = ""
    """A regular expression over clip names; clips whose first group is equal share a fold."""

    def __post_init__(self):
        at_least("folds", "count", self.count, 2)
        try:
            groups = re.compile(self.group).groups
        except re.error as error:
            raise UserError(f"folds.group is not a regular expression: {error}") from None
        if self.group and groups < 1:
            raise UserError("folds.group needs one (group) around the part that clips share")


@section
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: list[str] = field(default_factory=list)
    """Module names; empty: the default of the extractor's family (Baichuan: W_pack)."""

    def __post_init__(self):
        at_least("finetune.lora", "rank", self.rank, 1)
        _fraction("finetune.lora", "dropout", self.dropout)


@section
class FinetuneConfig:
    RENAMED: ClassVar = {"budget": "batch_budget"}
    method: str = "lora"
    """``lora`` trains adapters and the head; ``full`` trains every weight."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    epochs: int = 5
    batch: int = 32
    """Clips per optimizer step, over all processes."""
    batch_budget: float = 0.0
    """Tokens, frames or seconds of audio in one pass of a process, padding included; gradients are
    accumulated over the passes of ``batch``. 0: the family's default for the device."""
    micro_batch: int = 0
    """Largest number of clips in one pass of a process; 0: no limit but the budget. Without ``batch_budget``
    it replaces the budget: passes of so many clips, long or short."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Fraction of all steps with rising learning rate; then it falls as a cosine."""
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    """``none``, or ``balanced``: the weight of a class is inverse to its count."""
    validation: float = 0.1
    """Fraction of the training clips held out to choose the best epoch; never the adapter's fold."""
    cross_fit: bool = True
    """``false``: one adapter trained on every labelled clip and none per fold, for a corpus whose
    unlabelled clips are a fixed test split. Labelled clips then have no features to fuse."""
    precision: str = "bf16"
    """``bf16`` or ``fp32``."""
    gradient_checkpointing: bool = False
    deterministic: bool = False
    """On a GPU: only deterministic operations, so that an interrupted training ends with the same bits as an
    uninterrupted one. Slower; CPUs are deterministic anyway."""

    def __post_init__(self):
        one_of("finetune", "method", self.method, ("lora", "full"))
        one_of("finetune", "class_weights", self.class_weights, ("none", "balanced"))
        one_of("finetune", "precision", self.precision, ("bf16", "fp32"))
        for key in ("epochs", "batch"):
            at_least("finetune", key, getattr(self, key), 1)
        for key in ("batch_budget", "micro_batch", "learning_rate", "weight_decay"):
            at_least("finetune", key, getattr(self, key), 0)
        at_least("finetune", "clip_norm", self.clip_norm, 1e-6)
        for key in ("warmup", "label_smoothing", "validation"):
            _fraction("finetune", key, getattr(self, key))


@section
class ExtractorConfig:
    RENAMED: ClassVar = {"budget": "batch_budget"}
    family: str = MISSING
    """``text``, ``audio`` or ``image``: any model that transformers knows (docs/encoders.md); ``clip`` (frames),
    ``hubert`` (audio), ``baichuan`` (transcripts); or one that ``plugins`` adds."""
    path: str = MISSING
    """Folder of the model in the Hugging Face layout."""
    precision: str = "auto"
    """Of extraction: ``fp32``, ``tf32`` (float32 with factors that a GPU may round to 10 bits), ``bf16`` or
    ``fp16``. ``auto``: bf16 on a GPU that supports it, fp32 elsewhere; a run that is moved keeps its
    precision."""
    quantize: str = "none"
    """``nf4`` or ``int8``: hold the base weights in 4 or 8 bits (bitsandbytes); for LoRA only."""
    frames: int = 0
    """image, clip: number of stored frames to use, evenly spaced; 0: all."""
    window: float = 10.0
    """audio, hubert: longer audio is cut into windows of this many seconds."""
    max_tokens: int = 512
    """text, baichuan: longer transcripts are cut."""
    layers: list[int] = field(default_factory=list)
    """text, audio: the hidden states whose sum is the embedding: 0 is the input of the first layer, -1 the output
    of the model; empty: the last four, as in the challenge's baseline."""
    pooling: str = ""
    """text: ``mean`` over the transcript's tokens, ``first`` token (an encoder's CLS) or ``last`` token of the
    transcript; image: ``class`` token, ``pooled`` by the model, or ``mean`` over the patches; empty: the
    family's convention."""
    batch_budget: float = 0.0
    """Tokens, frames or seconds of audio in one forward pass of extraction, padding included; 0: the
    family's default for the device."""
    finetune: FinetuneConfig | None = None
    """Absent: the extractor stays frozen."""

    def __post_init__(self):
        ENCODERS.check("family", self.family)
        self.path = path("", "path", self.path)
        one_of("", "precision", self.precision, ("auto", "fp32", "tf32", "bf16", "fp16"))
        one_of("", "quantize", self.quantize, ("none", "nf4", "int8"))
        if self.quantize != "none" and self.finetune and self.finetune.method == "full":
            raise UserError("quantize: quantised weights cannot be trained in full; use finetune.method lora")
        for key in ("frames", "batch_budget"):
            at_least("", key, getattr(self, key), 0)
        at_least("", "max_tokens", self.max_tokens, 1)
        at_least("", "window", self.window, 0.1)

    @property
    def finetuning(self) -> FinetuneConfig:
        """``finetune`` of an extractor with this section.

        Raises:
            ValueError: the extractor is frozen.
        """
        if self.finetune is None:
            raise ValueError(f"{self.family} at {self.path} is not fine-tuned")
        return self.finetune


@section
class ExtractConfig:
    frame_level: bool = True
    """Also store one embedding per frame or token, not only one per clip."""
    storage: str = "fp32"
    """Precision of the stored features: ``fp32`` or ``fp16``."""
    frozen: bool = True
    """Also extract the frozen features of fine-tuned extractors, for comparison."""
    anchors: int = 128
    """Unlabelled clips seen by every adapter of an extractor, to align their spaces."""

    def __post_init__(self):
        one_of("extract", "storage", self.storage, ("fp32", "fp16"))
        at_least("extract", "anchors", self.anchors, 0)


@section
class FuseConfig:
    RENAMED: ClassVar = {"guide": "query_modality", "context": "cross_attention", "shortcut": "linear_skip"}
    labels: str = ""
    """CSV ``name,label[,split]`` or ``name,discrete``, or the baseline's ``label-6way.npz``, whose
    ``train_corpus`` is labelled; used instead of the shard index (imported features)."""
    sets: list[str] = field(default_factory=list)
    """Feature sets to fuse; empty: one of every extractor, fine-tuned if there is one."""
    level: str = "utterance"
    """``utterance``: one token per clip and set; ``frame``: at most ``tokens``, pooled."""
    tokens: int = 8
    model: str = "agt"
    """``agt``, or a baseline trained in the same way: ``attention`` (the challenge baseline's fusion),
    ``mlp`` (all embeddings concatenated), ``linear`` (the same without hidden layers); or the registered name
    of your own model."""
    query_modality: str = "audio"
    """agt: the modality whose tokens are the queries of the cross-attention."""
    cross_attention: bool = True
    """agt: Context-Based Transformers; ``false``: every modality goes to the fusion unchanged."""
    fusion: str = "gating"
    """agt: ``gating`` (Adaptive Multimodal Fusion), ``concatenate`` or ``mean``."""
    linear_skip: bool = True
    """agt: a linear path from the features to the logits, parallel to the transformer."""
    width: int = 64
    heads: int = 4
    dropout: list[float] = field(default_factory=lambda: [0.1, 0.4, 0.7])
    """Not for linear. Of several values, each fold uses the one of highest likelihood on a further fold,
    with models that left out both: less informative clips need more. With two folds the middle
    value."""
    feature_dropout: float = 0.5
    """Not for attention: probability that a single feature is hidden."""
    modality_dropout: float = 0.1
    """agt: probability that a modality is hidden from a training clip that has others."""
    seeds: int = 3
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05

    def __post_init__(self):
        one_of("fuse", "level", self.level, ("utterance", "frame"))
        self.labels = path("fuse", "labels", self.labels)
        FUSION_MODELS.check("fuse.model", self.model)
        one_of("fuse", "query_modality", self.query_modality, ("audio", "video", "text"))
        if self.fusion == "gates":
            raise UserError("fuse.fusion: gates is called gating now; write that")
        one_of("fuse", "fusion", self.fusion, ("gating", "concatenate", "mean"))
        for key in ("tokens", "width", "heads", "seeds", "epochs", "batch"):
            at_least("fuse", key, getattr(self, key), 1)
        for key in ("feature_dropout", "modality_dropout", "label_smoothing"):
            _fraction("fuse", key, getattr(self, key))
        for name in self.sets:
            try:
                FeatureSetId.parse(name)
            except UserError as error:
                raise UserError(f"fuse.sets: {error}") from None
        if len(set(self.sets)) < len(self.sets):
            raise UserError(f"fuse.sets names a feature set twice: {', '.join(self.sets)}")
        at_least("fuse", "learning_rate", self.learning_rate, 1e-9)
        at_least("fuse", "weight_decay", self.weight_decay, 0)
        for chance in self.dropout:
            _fraction("fuse", "dropout", chance)
        if not self.dropout:
            raise UserError("fuse.dropout needs at least one value, as [0.3]")
        if self.width % self.heads:
            raise UserError(f"fuse.width {self.width} must be a multiple of fuse.heads {self.heads}")


@section
class SelfTrainConfig:
    rounds: int = 2
    """Rounds of pseudo-labels after the supervised round 0; 0 turns self-training off."""
    rule: str = "quota"
    """``quota``: the most confident clips of each class, in the proportion of the classes; ``threshold``:
    all that reach ``confidence``; ``precision``: all that reach their class's threshold, learned on
    held-out clips so that ``precision`` of its predictions are right; ``consensus``: as
    ``quota``, by what models and ``teachers`` say together, without the clips on which they disagree,
    unless the teachers are ``sure``. The last two need three folds."""
    quota: float = 0.5
    """Fraction of the unlabelled clips that the last round selects by the rules ``quota`` and
    ``consensus``, and that one of its epochs uses by any rule; earlier rounds less, in even steps."""
    confidence: float = 0.5
    """Probability below which a clip is never selected, whatever the rule. It is calibrated on models
    that left out two folds, one per pair; with two folds it is uncalibrated."""
    precision: float = 0.8
    """Fraction of a class's predictions that must be right: lower end of the interval on held-out clips."""
    teachers: list[str] = field(default_factory=list)
    """Outside labellers for the rule ``consensus``, by the names that ``mer-dist import-answers`` gave them."""
    sure: float = 0.9
    """Calibrated probability from which ``teachers`` overrule the models."""
    weight: float = 0.5
    """Weight of a pseudo-labelled clip relative to a labelled one; times its confidence."""
    start: str = "scratch"
    """``scratch``: each round trains new models; ``warm``: it continues those of the round before."""
    patience: int = 0
    """Stop when the out-of-fold WAF has not risen for so many rounds in a row; 0: run all."""

    def __post_init__(self):
        for key in ("rounds", "patience"):
            at_least("self_train", key, getattr(self, key), 0)
        one_of("self_train", "rule", self.rule, ("quota", "threshold", "precision", "consensus"))
        one_of("self_train", "start", self.start, ("scratch", "warm"))
        for key in ("quota", "weight"):
            if not 0 < getattr(self, key) <= 1:
                raise UserError(f"self_train.{key} is {getattr(self, key)}; it must be in (0, 1]")
        for key in ("confidence", "precision", "sure"):
            _fraction("self_train", key, getattr(self, key))
        if (self.rule == "consensus") != bool(self.teachers):
            raise UserError("self_train.teachers belongs to self_train.rule: consensus, and is needed there")
        _distinct("self_train", self.teachers)


@section
class VoteConfig:
    RENAMED: ClassVar = {"probes": "scorer_feedback"}
    kind: str = "soft"
    """``soft``: weighted mean of the members' probabilities; ``hard``: weighted votes of their
    predictions. The weights come from out-of-fold predictions."""
    prior: str = "estimate"
    """``estimate`` from the unlabelled clips, ``given`` by the user, ``probed`` from scores of constant
    predictions, or ``none``: no correction, plain argmax."""
    answer: str = "vote"
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
        one_of("vote", "kind", self.kind, ("soft", "hard"))
        one_of("vote", "answer", self.answer, ("vote", "best"))
        _distinct("vote", self.teachers)
        self.names = path("vote", "names", self.names)
        one_of("vote", "prior", self.prior, ("estimate", "given", "probed", "none"))
        for key, kind in (("given", "given"), ("scorer_feedback", "probed")):
            if (self.prior == kind) != bool(getattr(self, key)):
                raise UserError(f"vote.{key} belongs to vote.prior: {kind}, and is needed there")
        if below := {label: share for label, share in self.given.items() if share < 0}:
            raise UserError(f"vote.given must be shares, and none of them below 0: {below}")
        total = sum(self.given.values())
        if self.given and abs(total - 1) > 0.01:
            raise UserError(f"vote.given must be shares that sum to 1; they sum to {total:g}")


@section
class ReportConfig:
    clips: int = 40
    """Clips that ``report.html`` shows, in all; 0: none."""
    sound: str = "embed"
    """Of these clips: ``embed`` it in the page, ``link`` files beside the page, or ``none``."""

    def __post_init__(self):
        at_least("report", "clips", self.clips, 0)
        one_of("report", "sound", self.sound, ("embed", "link", "none"))
