"""The settings that determine the bytes of a shard, and whether the existing shards have these settings."""

from __future__ import annotations

from dataclasses import asdict

from mer_dist.config.config import Config
from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.shards import shard_index
from mer_dist.shards.views import FACE
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run, ShardFolder

#: Increased when the same input and settings give different members.
FORMAT = 3
#: The same of a source of faces, where only that changed: value of ``shard.faces`` -> version.
FACES = {"cascade": 2}
#: Keys that came later, and change nothing with these values.
LATER: dict[str, object] = {"faceless": "frame", "views": [FACE]}
#: Keys that change no shard: the number of workers, and permissions.
OTHER = ("workers", "remove", "without_media")


def settings_fingerprint(config: ShardConfig) -> str:
    settings = {
        key: value for key, value in asdict(config).items() if key not in OTHER and LATER.get(key) != value
    }
    faces = FACES.get(config.faces)
    return files.fingerprint_of([FORMAT, settings, *([faces] if faces else [])])


def check_settings(config: Config) -> None:
    """Refuse shards made with other settings: their results would pass for those of the present settings.

    Raises:
        UserError: the section ``shard`` differs from that of the shards, or an earlier version made them.
    """
    run = Run(config.run.folder)
    wanted = settings_fingerprint(config.shard)
    for number in shard_index.numbers(run.shards):
        record = shard_index.read_record(ShardFolder(run.shards).record(number))
        if record is not None and record.fingerprint != wanted:
            raise UserError(
                f"{run.shards}: the shards were cut with other settings than those of shard in the configuration, "
                "or by an earlier version; run shard, which cuts them again, or restore their settings"
            )
