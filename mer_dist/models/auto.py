"""Any architecture that transformers knows, by the ``model_type`` of a model folder; code in the folder is never run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mer_dist.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def settings_of(folder: Path) -> PreTrainedConfig:
    """The configuration of a model folder.

    Raises:
        UserError: it is not one of transformers.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model folder {folder}: {' '.join(str(error).split())[:300]}") from None


def backbone_class(folder: Path) -> type[PreTrainedModel]:
    """The class of the model without any head.

    Raises:
        UserError: transformers has none for this ``model_type``.
    """
    from transformers import MODEL_MAPPING

    settings = settings_of(folder)
    try:
        found: Any = MODEL_MAPPING[type(settings)]
    except KeyError:
        raise UserError(
            f"model folder {folder}: transformers has no model for {settings.model_type}"
        ) from None
    return found[0] if isinstance(found, tuple) else found


def summed(out: Any, layer_sets: Sequence[Sequence[int]] = ((),)) -> torch.Tensor:
    """For each set of layers the sum of their hidden states, side by side ``(P, L, sets x D)``; of an empty one the last
    four, as in the challenge's baseline.

    The last one is that after the final norm: in transformers 5 the last hidden state of HuBERT and its relatives is
    before it.
    """
    states = (*out.hidden_states[:-1], out.last_hidden_state)
    sums = [reduce(torch.add, [states[layer] for layer in layers] or states[-4:]) for layers in layer_sets]
    return torch.cat(sums, -1) if len(sums) > 1 else sums[0]
