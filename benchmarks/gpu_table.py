"""The results of the GPU check as tables; what was not run is told so, with its command."""

from __future__ import annotations

from collections.abc import Iterator

from gpu import STEPS, Check

#: Column -> key of a row and how its number is written.
EXTRACTION = {
    "clips a second": ("clips_s", "{:,.0f}"),
    "forward pass alone": ("forward_clips_s", "{:,.0f}"),
    "of it": ("of_forward", "{:.0%}"),
    "of peak, alone": ("forward_of_peak", "{:.0%}"),
    "against the loop": ("against_loop", "{:.1f}"),
    "waits for the GPU": ("syncs", "{}"),
    "GB in use": ("allocated_gb", "{:.1f}"),
    "GB held": ("gpu_gb", "{:.1f}"),
}
TRAINING = {
    "clips a second": ("rate", "{:,.1f}"),
    "of peak": ("of_peak", "{:.0%}"),
    "GB": ("card_gb", "{:.1f}"),
    "GB after each epoch": ("at_epochs_gb", "{}"),
}
FUSION = {
    "members": ("members", "{}"),
    "ms a step": ("step_ms", "{:.2f}"),
    "GPU works": ("busy", "{:.0%}"),
    "against one by one": ("against_one_by_one", "{:.1f}"),
    "answers a second": ("answers_s", "{:,.0f}"),
    "minutes of a stage": ("stage_minutes", "{:.1f}"),
}


def tables(check: Check) -> Iterator[str]:
    """Lines of Markdown."""
    rows = check.rows()
    planned = {row["run"]: row.get("gpu_gb") for row in rows if row["step"] == "plan"}
    yield from _device(rows)
    yield from _table("extraction", EXTRACTION, {
        f"{row['run']}, {row['precision']}": row for row in rows if row["step"] == "extract"
    }, planned)  # fmt: skip
    trained = [row | {"rate": max(row["clips_s"], default=None)} for row in rows if row["step"] == "train"]
    yield from _table("fine-tuning", TRAINING, {_named(row): row for row in trained}, planned)
    fused = {
        f"{row['model']}, width {row['width']}, batches of {row['batch']}": row
        for row in rows
        if row["step"] == "fusion"
    }
    yield from _table("fusion", FUSION, fused, {})
    for row in rows:
        if row["step"] in ("error", "resume", "job", "failed"):
            yield f"- {', '.join(f'{key} {value}' for key, value in row.items() if key != 'at')}"
    left = {row["what"] for row in rows if row["step"] == "left out"}
    run = {row.get("run") for row in rows if row["step"] in ("extract", "train")} | {
        row["step"] for row in rows
    }
    if waiting := [step.name for step in STEPS if step.name in left - run]:
        yield f"- not run yet, for `python benchmarks/gpu.py --out {check.out} --only STEP`: {', '.join(waiting)}"


def _named(row: dict) -> str:
    how = "killed" if "killed_after" in row else "" if row["code"] == 0 else f"ended with {row['code']}"
    return f"{row['run']}{f' ({how})' if how else ''}"


def _device(rows: list[dict]) -> Iterator[str]:
    for row in rows:
        if row["step"] == "device":
            rates = ", ".join(f"{key} {row[key]:.3g}" for key in ("bf16", "tf32", "fp32"))
            yield f"{row['card']}, torch {row['torch']}; matrix products in TFLOP/s: {rates}"


def _table(title: str, columns: dict, rows: dict[str, dict], planned: dict) -> Iterator[str]:
    if not rows:
        return
    of_plan = ["GB by `plan`"] if planned else []
    yield ""
    yield f"| {' | '.join([title, *columns, *of_plan])} |"
    yield f"|{'---|' * (1 + len(columns) + len(of_plan))}"
    for name, row in rows.items():
        cells = [_cell(row.get(key), form) for key, form in columns.values()]
        # Extraction is planned in the precision that a GPU gets by itself.
        known = None if row.get("precision", "bf16") != "bf16" else planned.get(row.get("run"))
        cells += [_cell(known, "{:.1f}")] if of_plan else []
        yield f"| {' | '.join([name, *cells])} |"


def _cell(value, form: str) -> str:
    return "–" if value is None else form.format(value)
