"""The path of one clip through a run: features, predictions, pseudo-labels, vote, answer.

It reads the files of the stages and runs nothing.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pyarrow.compute as pc
from safetensors import safe_open

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core.errors import UserError, reading
from mer_dist.core.feature_set_id import FeatureSetId
from mer_dist.core.records import UNLABELED
from mer_dist.core.text_table import aligned
from mer_dist.features import join, store
from mer_dist.fusion import predictions, pseudo_label_log, teachers
from mer_dist.shards import shard_index
from mer_dist.storage import files, parquet, quarantine
from mer_dist.storage.run_folder import FeatureFolder, Run

AGAIN = "delete its folder and run fuse"


def explain(folder: Path, name: str) -> dict:
    """Everything in a run folder about one clip, as plain values.

    Raises:
        UserError: there are no predictions yet, or none for a clip of this name.
    """
    run = Run(folder)
    if not run.config.exists():
        raise UserError(f"{run.folder}: no run there; it has no {run.config.name}, which fuse writes")
    config = configuration.of_run(run)
    paths = predictions.all_of(run)
    lost = [row for row in quarantine.read(run.quarantine) if row.name == name]
    rows = [row for path in paths if (row := _prediction(path, name))]
    if not rows and not lost:
        raise UserError(_unknown(run, paths, name))
    voted = predictions.voted(run)
    first: dict = rows[0] if rows else {"split": "", "fold": -1}
    return {
        "name": name,
        "split": first["split"],
        "fused": bool(paths),
        "fold": first["fold"],
        "label": _label(config, run, name),
        "labels": list(config.corpus.labels),
        "annotations": shard_index.annotations_of(run.shards, name),
        "features": _features(config, run, name, first["fold"]) if rows else [],
        "quarantine": [{"stage": row.stage, "lost": row.lost, "reason": row.reason} for row in lost],
        "predictions": [{key: row[key] for key in ("title", "probability", "answer")} for row in rows],
        "rounds": _rounds(run, name),
        "vote": _vote(run, first["fold"]) if rows else {},
        "teachers": [
            {"name": one, "answer": said[0], "probability": said[1]}
            for one in dict.fromkeys([*config.self_train.teachers, *config.vote.teachers])
            if (said := teachers.answer_of(run, one, name))
        ],
        "candidate": (wanted := join.asked(config, run)) is None or name in wanted,
        "answer": predictions.answered(run, voted).get(name),
        "voted": voted.get(name),
    }


def _prediction(path: Path, name: str) -> dict | None:
    """The clip's row in one prediction file."""
    with reading(path, AGAIN):
        table = parquet.read(path)
        rows, facts = table.filter(pc.field("name") == name).to_pylist(), table.schema.metadata
        if not rows:
            return None
        labels = json.loads(facts[b"labels"])
        row = {
            "title": facts[b"title"].decode(),
            "split": rows[0]["split"],
            "fold": rows[0]["fold"],
            "probability": [rows[0][f"p_{label}"] for label in labels],
            "answer": rows[0]["answer"],
        }
        if None in (*row.values(), *row["probability"]):
            raise ValueError("fields are empty")
        return row


def _unknown(run: Run, paths: list[Path], name: str) -> str:
    if not paths:
        return f"{run.folder}: there are no predictions yet; run fuse first"
    with reading(paths[-1], AGAIN):
        known = parquet.read(paths[-1], ["name"])["name"].to_pylist()
    near = difflib.get_close_matches(name, known, 3, 0.5)
    known = f"near names: {', '.join(near)}" if near else f"its names look like {known[0]}"
    return f"{run.folder}: no clip {name!r} there; {known}"


def _label(config: Config, run: Run, name: str) -> str | None:
    try:
        return join.labels_of(config, run)[0].get(name)
    except (UserError, OSError):  # the label file may be absent where the run is inspected
        return None


def _features(config: Config, run: Run, name: str, fold: int) -> list[dict]:
    """Per feature set: its modality, and why the clip is masked there, if it is."""
    broken = [row for row in quarantine.read(run.quarantine, join.STAGE) if row.name == name]
    found = []
    for set_name in join.all_sets(config, run):
        stored = FeatureSetId.parse(set_name).stored_of(None if fold < 0 else fold)
        why = next((row.reason for row in broken if row.part == set_name), None)
        modality, missing = _stored(run.features(stored), name)
        found.append({"set": set_name, "modality": modality, "masked": why or missing})
    return found


def _stored(folder: Path, name: str) -> tuple[str, str | None]:
    """Modality of a stored set, and why it lacks an embedding of the clip; None if it has one."""
    reason = "not in this feature set"
    for path in FeatureFolder(folder).shards():
        with reading(path, "delete it and run extract"), safe_open(path, "numpy") as file:
            facts = store.stored_header(file)
        if name in facts["names"]:
            return store.description(folder)["modality"], None
        reason = facts["missing"].get(name, reason)
    return store.description(folder)["modality"], reason


def _rounds(run: Run, name: str) -> list[dict]:
    """Per round of self-training: the clip's pseudo-label for each fold."""
    found = []
    for one in run.rounds():
        if one.pseudo_label_log.exists() and (rows := pseudo_label_log.of_clip(one.pseudo_label_log, name)):
            found.append({"round": one.number, "folds": rows})
    return found


def _vote(run: Run, fold: int) -> dict:
    """What the vote decided for all clips, those of ``fold`` among them."""
    path = run.vote.prior
    if not path.exists():
        return {}
    with reading(path, AGAIN):
        vote = files.read_json(path)
        shares = [vote[key] for key in ("labeled", "tried") if key in vote]
        weights = [vote.get("weights", {}), *vote.get("weights_of_folds", [])]
        taught = [one["weight"] for one in vote.get("teachers", {}).values()]
        figures = [figure for of in (*shares, *(own.values() for own in weights), taught) for figure in of]
        if not all(type(figure) in (int, float) for figure in figures):
            raise ValueError("its shares or weights are not numbers")
        if not isinstance(vote.get("answered_by_row", {}).get("reason", ""), str):
            raise ValueError("its reason for the answering row is not a string")
        labels = vote["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("its labels are not strings")
        if any(len(own) != len(labels) for own in shares) or len(weights) <= fold + 1:
            raise ValueError("its shares or weights do not match these labels and folds")
        return vote


def text(explanation: dict) -> str:
    """The same as plain text in aligned columns."""
    labels, parts = explanation["labels"], [_heading(explanation)]
    if explanation["annotations"]:
        parts.append("in the corpus\n" + _columns([[*pair] for pair in explanation["annotations"].items()]))
    if explanation["features"]:
        rows = [
            [one["set"], one["modality"], f"masked: {one['masked']}" if one["masked"] else "present"]
            for one in explanation["features"]
        ]
        parts.append("features\n" + _columns(rows))
    if explanation["quarantine"]:
        rows = [[one["stage"], f"lost: {one['lost']}", one["reason"]] for one in explanation["quarantine"]]
        parts.append("quarantine\n" + _columns(rows))
    if explanation["predictions"]:
        rows = [["", *labels, "answer"]]
        rows += [
            [one["title"], *_shares(one["probability"]), one["answer"]] for one in explanation["predictions"]
        ]
        parts.append("prediction of each model\n" + _columns(rows))
    parts += [_lent(one, labels) for one in explanation["rounds"]]
    if explanation["teachers"]:
        parts.append("outside labellers\n" + _columns(_teacher_rows(explanation)))
    vote_lines = [*_vote_lines(explanation), *_why_another(explanation)] if explanation["vote"] else []
    parts.append("\n".join([*vote_lines, _answer_text(explanation)]))
    return "\n\n".join(parts)


def _heading(explanation: dict) -> str:
    if not explanation["split"]:
        why = "left out of fusion" if explanation["fused"] else "not fused yet; run fuse"
        return f"{explanation['name']}: {why}"
    if explanation["split"] == UNLABELED:
        return f"{explanation['name']}: unlabelled"
    label = explanation["label"] or "(label not available)"
    return f"{explanation['name']}: labelled {label}, fold {explanation['fold']}; every prediction is out of fold"


def _shares(probability: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in probability]


def _lent(one: dict, labels: list[str]) -> str:
    """The table of one round: a row per fold."""
    rows = [["", *labels, "label", "taken", "weight", "threshold", "why not", "voters"]]
    for row in one["folds"]:
        threshold = "none" if row["threshold"] is None else f"{row['threshold']:.3f}"
        rows.append(
            [
                f"for fold {row['fold']}",
                *_shares([row[f"p_{label}"] for label in labels]),
                row["pseudo_label"],
                "yes" if row["selected"] else "no",
                f"{row['weight']:.3f}",
                threshold,
                row["reason"] or "-",
                f"{row['models']} of round {one['round'] - 1}",
            ]
        )
    return f"as a pseudo-label in round {one['round']}\n{_columns(rows)}"


def _vote_lines(explanation: dict) -> list[str]:
    """The lines about the vote for this clip; the prior is that of the unlabelled clips."""
    vote, parts = explanation["vote"], []
    if all(one["masked"] for one in explanation["features"]):
        parts.append("it has no usable modality: it gets the label shares, whatever the weights are")
    else:
        weights, whose = vote.get("weights", {}), "for unlabelled clips"
        if explanation["fold"] >= 0:
            weights, whose = vote["weights_of_folds"][explanation["fold"]], f"for fold {explanation['fold']}"
        lines = [[title, f"{weight:.3f}"] for title, weight in weights.items()]
        parts.append(f"{vote.get('kind', 'soft')} vote: weight of each member {whose}\n{_columns(lines)}")
        said = vote.get("teachers", {})
        lines = [
            [one["name"], f"{said[one['name']]['weight']:.3f}"]
            for one in explanation["teachers"]
            if one["name"] in said
        ]
        if lines:
            parts.append(
                f"exponent of each outside labeller beside them, for unlabelled clips\n{_columns(lines)}"
            )
    if explanation["split"] == UNLABELED:
        state = "applied" if vote.get("applied") else "not applied"
        parts.append(f"prior correction {state}: {vote.get('reason', '')}")
        if "answered_by" in vote:
            parts.append(f"decision for unlabelled clips: {vote['answered_by']}")
        if "tried" in vote:
            shares = {"labelled clips": vote["labeled"], f"prior: {vote['origin']}": vote["tried"]}
            rows = [[name, *_shares(own)] for name, own in shares.items()]
            parts.append(_columns([["", *vote["labels"]], *rows]))
    return parts


def _teacher_rows(explanation: dict) -> list[list[str]]:
    """What each says of this clip, and whether the models agree with it against the clip's label."""
    final = explanation["predictions"][-1]["answer"] if explanation["predictions"] else None
    rows = []
    for one in explanation["teachers"]:
        against = one["answer"] == final and explanation["label"] not in (None, final)
        note = f"as the models, against its label {explanation['label']}" if against else ""
        rows.append([one["name"], one["answer"], f"{one['probability']:.3f}", note])
    return rows


def _why_another(explanation: dict) -> list[str]:
    """Why the vote's answer is not its most probable label, if it is not."""
    final, labels = explanation["predictions"][-1], explanation["labels"]
    most = labels[final["probability"].index(max(final["probability"]))]
    if final["answer"] == most:
        return []
    return [
        (
            f"the most probable label is {most}, the answer {final['answer']}: where a correction is applied "
            "answers are chosen together, to maximise the expected WAF of all, and a rarer label is "
            "chosen somewhat more often"
        )
    ]


def _answer_text(explanation: dict) -> str:
    voted = explanation.get("voted")
    if voted not in (None, explanation["answer"]):
        now = explanation["answer"] or "none, its row is missing"
        return f"answer: {now}; answer.csv was changed after the vote, which answered {voted}: run fuse to undo it"
    if not explanation["split"]:
        if not explanation["fused"]:
            return "answer: none yet"
        if explanation["answer"] is None:
            return "answer: none, since it was left out"
        return f"answer: {explanation['answer']}, the most frequent label, since vote.names asks for it"
    if explanation["answer"] is not None:
        row = explanation["vote"].get("answered_by_row")
        return f"answer: {explanation['answer']}" + (
            f", by vote.answer: best: {row['reason']}" if row else ""
        )
    if explanation["split"] != UNLABELED and explanation["vote"]:
        final = explanation["predictions"][-1]["answer"]
        return f"answer: {final}, not in answer.csv, since the clip is labelled"
    why = "" if explanation["candidate"] else ", since it is no candidate of the corpus"
    return f"answer: not in answer.csv{why}"


def _columns(rows: list[list[str]]) -> str:
    """Aligned, indented by two spaces; columns of numbers are right-aligned."""
    numbers = {column for column, cell in enumerate(rows[-1]) if _number(cell)}
    return aligned(rows, right=numbers, indent="  ")


def _number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
