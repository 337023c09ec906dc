"""The published models by the name of their folder, so that a run can be planned before any download.

The figures are those of the ``config.json`` that each of them is published with.
"""

from __future__ import annotations

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BAICHUAN_13B = (
    "baichuan",
    {
        "vocab_size": 64000,
        "hidden_size": 5120,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
)

#: folder name -> family and the settings of its backbone's configuration class.
PUBLISHED: dict[str, tuple[str, dict]] = {
    "Baichuan-13B-Base": _BAICHUAN_13B,
    "Baichuan-13B-Chat": _BAICHUAN_13B,
    "clip-vit-large-patch14": (
        "clip",
        {**_LARGE, "image_size": 224, "patch_size": 14, "projection_dim": 768},
    ),
    "chinese-hubert-large": (
        "hubert",
        {
            **_LARGE,
            "conv_dim": (512,) * 7,
            "conv_bias": True,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
    ),
}
