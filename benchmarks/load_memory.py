"""Host memory of every rank while a checkpoint is loaded under ZeRO-3. ::

    python benchmarks/load_memory.py --folder runs/load-memory --processes 2 4

Makes a random Baichuan of about 1 GB in the published layout (bf16, two .bin shards and an index),
loads it as fine-tuning does, with LoRA, in as many processes as told, and prints for each rank the
peak of anonymous memory (what cannot be evicted) and of mapped file pages (page cache, shared by the
ranks of a machine and evictable).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from mer_dist.processes import env
from mer_dist.storage.files import write_json

LAUNCH = Path(__file__).parent.parent / "launch" / "zero3-cpu.yaml"
#: 493 M parameters, 0.99 GB in bf16; real-width layers would leave room for two.
SIZES = {
    "vocab_size": 8000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 9,
    "num_attention_heads": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/load-memory"))
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.rank_of:
        return load_and_tell(parsed.folder, parsed.rank_of)
    size = make(parsed.folder / "model")
    print(f"checkpoint of {size / 2**20:.0f} MiB")
    for processes in parsed.processes:
        out = parsed.folder / f"ranks-{processes}"
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(LAUNCH),
            "--num_processes",
            str(processes),
            "--main_process_port",
            str(env.free_port()),
            __file__,
            "--folder",
            str(parsed.folder),
            "--rank-of",
            str(out),
        ]
        subprocess.run(command, env=env.for_children(1), check=True, stdout=subprocess.DEVNULL)
        for rank in range(processes):
            facts = json.loads((out / f"{rank}.json").read_text())
            print(
                f"{processes} processes, rank {rank}: "
                + ", ".join(f"{what} {value / 2**20:.0f} MiB" for what, value in facts.items())
            )


def make(folder: Path) -> int:
    """The checkpoint, made once; returns the bytes of its weights."""
    import torch

    from mer_dist.models.baichuan import BaichuanConfig, BaichuanForCausalLM
    from mer_dist.models.tokenizer import BaichuanTokenizer

    weights = [folder / f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    if not (folder / "pytorch_model.bin.index.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        BaichuanTokenizer.train(["今天天气很好，我们出去走走吧"] * 20, 300).save_pretrained(folder)
        torch.set_default_dtype(torch.bfloat16)
        model = BaichuanForCausalLM(BaichuanConfig(**SIZES, architectures=["BaichuanForCausalLM"]))
        model.config.save_pretrained(folder)
        state = model.state_dict()
        names = sorted(state)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        for path, part in zip(weights, parts, strict=True):
            torch.save({name: state[name].clone() for name in part}, path)
        place = {name: path.name for path, part in zip(weights, parts, strict=True) for name in part}
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": place})
    return sum(path.stat().st_size for path in weights)


def load_and_tell(folder: Path, out: Path) -> None:
    """One rank: load, keep the peaks, write them."""
    from mer_dist.config.sections import ExtractorConfig, FinetuneConfig
    from mer_dist.models.classifier import trainable_classifier
    from mer_dist.training.accelerator import make_accelerator

    accelerator = make_accelerator("bf16", [], out, threads=1)
    # DeepSpeed, transformers and torch themselves: taken before the model exists.
    before = resident()
    peaks, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.is_set():
            for key, value in resident().items():
                peaks[key] = max(peaks[key], value)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    settings = ExtractorConfig(family="baichuan", path=str(folder / "model"), finetune=FinetuneConfig())
    classifier = trainable_classifier(settings, 6, 0, sharded=True)
    done.set()
    watcher.join()
    held = (getattr(weight, "ds_tensor", weight) for weight in classifier.parameters())
    own = sum(weight.numel() * weight.element_size() for weight in held)
    write_json(
        out / f"{accelerator.process_index}.json",
        {
            "own part": own,
            "anonymous at the peak": peaks["RssAnon"] - before["RssAnon"],
            "anonymous after": resident()["RssAnon"] - before["RssAnon"],
            "mapped pages at the peak": peaks["RssFile"] - before["RssFile"],
            "shared memory at the peak": peaks["RssShmem"] - before["RssShmem"],
        },
    )
    accelerator.wait_for_everyone()
    accelerator.end_training()


def resident() -> dict[str, int]:
    """Bytes of this process's memory by kind, from the kernel."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(rows[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "RssShmem")}


if __name__ == "__main__":
    main()
