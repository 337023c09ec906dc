"""The result of ``plan`` as readable tables."""

from __future__ import annotations

from mer_dist.core.text_table import aligned
from mer_dist.planning import layouts
from mer_dist.planning.plan import GPUS


def table(needs: dict) -> str:
    """The plan for a reader; GB are 10^9 bytes."""
    layout = needs["layout"]
    nodes = f" on {layout['machines']} nodes" if layout["machines"] > 1 else ""
    parts = [
        f"finetune: {_processes(layout)}, one per GPU{nodes}, {layout['description']}",
        _grid(_models_table(needs), left=2),
        _grid(_memory_table(needs, "finetune")),
        _grid(_memory_table(needs, "extract")),
        _grid(_gpus_table(needs)),
        _grid(layouts.table(needs["layouts"])),
        "\n".join(needs["layouts_proposed"]),
        "\n".join(_folder_lines(needs)),
        "\n".join(f"WARNING: {text}" for text in needs["warnings"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _processes(facts: dict) -> str:
    return "1 process" if facts["processes"] == 1 else f"{facts['processes']} processes"


def _models_table(needs: dict) -> list[list[str]]:
    rows = [["model", "architecture", "parameters", "trained", "adapters"]]
    for name, facts in needs["extractors"].items():
        tuned = facts["finetune"]
        known = facts["path"] if facts["source"] == "config.json" else f"{facts['source']}, as published"
        rows.append(
            [
                name,
                known,
                f"{facts['parameters']:,}",
                f"{tuned['trainable']:,} ({tuned['method']})" if tuned else "none (frozen)",
                f"{tuned['adapters']}" if tuned else "-",
            ]
        )
    return rows


def _memory_table(needs: dict, stage: str) -> list[list[str]]:
    """Rows with the memory of one process; empty columns are omitted."""
    found = {name: facts[stage] for name, facts in needs["extractors"].items() if facts[stage]}
    keys = dict.fromkeys(key for facts in found.values() for key in facts["gpu"])
    columns = [key for key in keys if any(facts["gpu"].get(key) for facts in found.values())]
    rows = [[f"{stage}, GB a process", *columns, "GPU peak", "host"]]
    for name, facts in found.items():
        shown = [f"{facts['gpu'].get(key, 0) / 1e9:.2f}" for key in columns]
        numbers = f", {facts['precision']}" if "precision" in facts else ""
        rows.append(
            [
                f"{name} ({facts['at_a_time']} at a time{numbers})",
                *shown,
                f"{facts['gpu_total'] / 1e9:.1f}",
                f"{facts['host'] / 1e9:.1f}",
            ]
        )
    return rows


def _gpus_table(needs: dict) -> list[list[str]]:
    rows = [["fewest GPUs of", *(f"{size} GB" for size in GPUS), "as configured, fits GPUs of"]]
    for name, facts in needs["extractors"].items():
        for stage in ("finetune", "extract"):
            if (found := facts[stage]) is None:
                continue
            least = found.get("smallest") or {f"{size}": 1 for size in found["fits"]}
            fits = ", ".join(f"{size}" for size in found["fits"])
            rows.append(
                [
                    f"{stage} {name}",
                    *(f"{least.get(f'{size}') or 'none'}" for size in GPUS),
                    f"{fits} GB" if fits else "does not fit",
                ]
            )
    return rows


def _folder_lines(needs: dict) -> list[str]:
    """Shards and disk, one fact per line."""
    shards, disk, found = needs["shards"], needs["disk"], needs["clips"]
    unit, divisor = ("kB a clip", 1e3) if disk["per_clip"] else ("GB", 1e9)
    lines = []
    if found is None:
        lines.append(f"clips: unknown, give --clips N ({needs['clips_unknown']})")
    else:
        known = "" if found["labeled"] is None else f", {found['labeled']:,} of them labelled"
        lines.append(f"clips: {found['all']:,}{known} (from {found['from']})")
        lines.append(
            f"shards: about {shards['count']} of {shards['clips_per_shard']} clips, for "
            f"{_processes(shards)}; {shards['workers']} workers decode them"
        )
    lines.append(f"disk for shards: about {disk['shards'] / divisor:.2f} {unit}")
    lines += [
        f"disk for features {name}: about {size / divisor:.2f} {unit}"
        for name, size in disk["features"].items()
    ]
    if disk["adapters"]:
        lines.append(
            f"disk for adapters: {disk['adapters'] / 1e9:.2f} GB, and up to "
            f"{disk['checkpoints'] / 1e9:.2f} GB while one is trained"
        )
    return lines


def _grid(rows: list[list[str]], left: int = 1) -> str:
    """Aligned columns, the first ``left`` of them to the left; empty if there is only the header."""
    if len(rows) == 1:
        return ""
    return aligned(rows, right=range(left, len(rows[0])))
