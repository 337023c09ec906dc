"""Baichuan-13B (v1), native: loads the published files on current transformers, no remote code.

A decoder of RMSNorm, one packed q/k/v projection, SwiGLU, and ALiBi (Press et al. 2022, "Train
Short, Test Long") in place of position embeddings. ``hidden_states`` are the embeddings, the
outputs of layers 1 to n - 1, and the output after the final norm.
"""

from __future__ import annotations

import math
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from mer_dist.core.errors import UserError
from mer_dist.models.baichuan_family import not_baichuan_13b


class BaichuanConfig(PreTrainedConfig):
    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 64000
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    model_max_length: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if reason := not_baichuan_13b({**vars(self), **kwargs}):
            raise UserError(f"{self.name_or_path or 'config'}: {reason}")


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head (Press et al. 2022, section 3).

    If the head count is not a power of two, the slopes of the next lower power come first, then
    every other slope of twice that power. This is the published order, which is not sorted.
    """

    def powers(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    lower = 2 ** math.floor(math.log2(heads))
    return powers(lower) + powers(2 * lower)[0::2][: heads - lower]


class BaichuanRMSNorm(nn.Module):
    """The published RMSNorm in one GPU kernel. It stays in float32 for the product with the weight, too;
    the published code rounds before it."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Autocast would convert half precision to float32, and autograd would keep the result.
        with torch.autocast(x.device.type, enabled=False):
            normal = F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return normal.to(self.weight.dtype)


class BaichuanMLP(nn.Module):
    def __init__(self, config: BaichuanConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def alibi_columns(
    slopes: list[float], head_width: int, first: int, length: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``(3, heads, length, C)``: the columns that :class:`BaichuanAttention` appends to queries, keys and
    values from position ``first`` on, so that the dot product includes ALiBi's bias.

    The bias slope * j depends on the key only: the key holds it, the query a matching 1, and no
    (heads, L, L) mask is built. One half-precision number cannot hold it (0.25 off at j = 118), so a
    second one holds the rounding error. Zeros pad the width to the multiple of 8 that fused GPU
    kernels need; they would otherwise copy everything to pad it.
    """
    extra = 2 if device.type == "cpu" else 2 + -(head_width + 2) % 8
    # Created in host memory and sent without waiting, so that the host runs ahead of a GPU.
    slope = torch.tensor(slopes, dtype=torch.float32).to(device, non_blocking=True)
    positions = torch.arange(first, first + length, dtype=torch.float32, device=device)
    exact = slope[:, None] * positions * head_width**0.5
    columns = torch.zeros(3, len(slopes), length, extra, dtype=dtype, device=device)
    columns[0, ..., :2].fill_(1)
    columns[1, ..., 0] = exact
    columns[1, ..., 1] = exact - columns[1, ..., 0].float()
    return columns


class BaichuanAttention(nn.Module):
    """Causal attention with the bias of :func:`alibi_columns`."""

    def __init__(self, config: BaichuanConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads = config.num_attention_heads
        self.head_width = config.hidden_size // config.num_attention_heads
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: torch.Tensor, columns: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor:
        """``x`` (B, L, D); ``columns`` (3, heads, L, C) of the same positions; ``mask`` bool
        (B, 1, L, keys), None for plain causal attention. A ``cache`` stores keys and values with
        their columns."""
        batch, length, _ = x.shape
        packed = self.W_pack(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = (
            torch.cat([part, own.expand(batch, -1, -1, -1)], -1)
            for part, own in zip(packed.permute(2, 0, 3, 1, 4), columns.to(packed.dtype), strict=True)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            scale=self.head_width**-0.5,
        )[..., : self.head_width]
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class BaichuanLayer(GradientCheckpointingLayer):
    def __init__(self, config: BaichuanConfig, layer: int):
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, columns=None, mask=None, past_key_values=None) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), columns, mask, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class BaichuanPreTrainedModel(PreTrainedModel):
    config: BaichuanConfig
    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]
    _supports_sdpa = True


class BaichuanModel(BaichuanPreTrainedModel):
    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        if config._attn_implementation != "sdpa":
            raise UserError(f"attn_implementation {config._attn_implementation!r}: only sdpa is there")
        # Plain floats: tensors created here would be lost under meta devices and cast by zero.Init.
        self.slopes = alibi_slopes(config.num_attention_heads)
        self.head_width = config.hidden_size // config.num_attention_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [BaichuanLayer(config, layer) for layer in range(config.num_hidden_layers)]
        )
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | None = None,
        **unused,
    ) -> BaseModelOutputWithPast:
        """``input_ids`` (B, L); ``attention_mask`` (B, keys): 0 for padding, on either side, 1 for
        real tokens, or 1, 2, … in rising order for texts packed into one row.

        ``output_hidden_states`` may be the number of last states to keep: all forty, where four are
        needed, would take more memory than the rest of a forward pass.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = attention_pattern(attention_mask, x.shape[1], cached, x.device)
        columns = alibi_columns(
            self.slopes, self.head_width, cached, x.shape[1], _computing_dtype(x), x.device
        )
        every = isinstance(output_hidden_states, bool) or not output_hidden_states
        states = deque([x], maxlen=None if every else output_hidden_states)
        for layer in self.layers:
            x = layer(x, columns=columns, mask=mask, past_key_values=past_key_values)
            states.append(x)
        states[-1] = x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


def _computing_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of a linear layer's output for ``x``."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def attention_pattern(
    attention_mask: torch.Tensor | None, length: int, cached: int, device: torch.device
) -> torch.Tensor | None:
    """Which keys a query sees, (B or 1, 1, L, cached + L) bool; None where plain causal suffices.

    Right padding needs no mask: a causal query never sees the padding behind it. If numbers rise
    along a row, it is left-padded or packed, and a query sees only keys with its own number.
    """
    keys = torch.arange(cached + length, device=device)
    if attention_mask is None or not bool((attention_mask.diff() > 0).any()):
        if cached == 0 or length == 1:
            return None
        return (keys <= keys[cached:, None])[None, None]
    segments = attention_mask[:, None, None, : cached + length]
    return (keys <= keys[cached:, None]) & (segments == segments[..., cached:].mT)


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        **inputs,
    ) -> CausalLMOutputWithPast:
        """``labels`` (B, L) as ``input_ids``, -100 for positions without loss; shifted here."""
        inputs.pop("return_dict", None)
        outputs = self.model(input_ids, **inputs)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


class BaichuanForSequenceClassification(BaichuanPreTrainedModel):
    """Logits of each row's last real token, as in transformers' other decoders."""

    def __init__(self, config: BaichuanConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **inputs,
    ) -> SequenceClassifierOutputWithPast:
        """``attention_mask`` (B, L), not the ids, decides the last real token: the pad id 0 is the
        unknown token as well. ``labels`` (B,) classes, or as ``config.problem_type`` requires."""
        inputs.pop("return_dict", None)
        outputs = self.model(input_ids, attention_mask=attention_mask, **inputs)
        states = outputs.last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        last = torch.full_like(rows, states.shape[1] - 1)
        if attention_mask is not None:
            positions = torch.arange(states.shape[1], device=states.device)
            last = (positions * attention_mask.bool()).argmax(1)
        logits = self.score(states[rows, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


AutoConfig.register("baichuan", BaichuanConfig)
AutoModel.register(BaichuanConfig, BaichuanModel)
AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM)
AutoModelForSequenceClassification.register(BaichuanConfig, BaichuanForSequenceClassification)
