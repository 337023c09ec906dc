"""Peak memory of one Baichuan-13B layer at real width, with and without an explicit ALiBi mask.

    python benchmarks/attention_memory.py [LENGTH]

Each way runs in a process of its own, because the peak of a process never falls. The figure is what
the forward pass of one float32 row adds to the process that already holds the layer.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from mer_dist.models.baichuan import BaichuanAttention, BaichuanConfig, BaichuanLayer


class ExplicitAttention(BaichuanAttention):
    """The same attention through a (heads, L, L) bias, as the published code computes it."""

    def forward(self, x, mask, cache):
        batch, length, _ = x.shape
        packed = self.W_pack(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        places = torch.arange(length)
        bias = (torch.tensor(self.slopes)[:, None, None] * places).expand(-1, length, -1)
        bias = bias.masked_fill(places > places[:, None], -torch.inf)
        scores = query @ key.transpose(2, 3) / self.head_width**0.5 + bias
        mixed = scores.softmax(-1) @ value
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def measure(way: str, length: int) -> None:
    torch.manual_seed(0)
    config = BaichuanConfig()
    layer = BaichuanLayer(config, 0)
    if way == "explicit":
        layer.self_attn.__class__ = ExplicitAttention
    x = torch.randn(1, length, config.hidden_size)
    layer(x[:, :2])
    before, started = peak_mebibytes(), time.monotonic()
    total = layer(x).sum().item()
    seconds = time.monotonic() - started
    print(f"{way:9} L {length}: {peak_mebibytes() - before:7.0f} MiB, {seconds:5.1f} s, sum {total:.2f}")


def main() -> None:
    length = sys.argv[1] if len(sys.argv) > 1 else "2048"
    for way in ("native", "explicit"):
        subprocess.run([sys.executable, __file__, length, way], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(sys.argv[1]))
    else:
        main()
