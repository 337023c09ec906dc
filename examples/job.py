"""A whole job from Python: clips to answers. Each stage skips what is done.

Takes a configuration, as ``configs/demo.yaml`` after ``mer-dist demo demo-data``. ::

    python examples/job.py configs/demo.yaml
"""

import sys

import mer_dist as md


def main(path: str, *overrides: str) -> None:
    job = md.load(path, overrides)
    md.shard(job)  # clips to WebDataset shards
    md.finetune(job)  # in run.processes processes, under DeepSpeed where there are several
    md.extract(job)
    result = md.fuse(job)

    low, high = result.oof_score.interval
    print(f"out of fold: WAF {100 * result.oof_score.waf:.2f} % ({100 * low:.2f} to {100 * high:.2f})")
    print(f"{len(result.answers)} answers, for example {dict(list(result.answers.items())[:3])}")

    run = md.Run(job.run.folder)
    for name in run.feature_sets:
        print(f"features {name}: {run.features(name).utterance.shape}")
    for problem in run.quarantine()[:3]:
        print(f"left out: {problem.name}: {problem.lost}: {problem.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else sys.exit(__doc__)
