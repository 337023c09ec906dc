"""Features that one already has: arrays in, predictions and honest figures out.

Draws features of three modalities for 600 clips, of which 120 are labelled. ::

    python examples/features.py
"""

import numpy as np

import mer_dist as md

LABELS = ["calm", "glad", "tense"]


def main() -> None:
    features, truth, speaker = drawn(600)
    labels = np.where(np.arange(600) < 120, truth, -1)  # -1: unlabelled, learned from by self-training

    model = md.FusionClassifier(seeds=1)
    model.fit(features, labels, groups=speaker)  # clips of one speaker share a fold

    for row in model.oof_scores_:  # out of fold: no clip is predicted by models that saw its label
        low, high = row.interval
        print(f"{row.title:36} {100 * row.waf:5.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    new, new_truth, _ = drawn(200, seed=1)
    print(f"new clips: {100 * (model.predict(new) == new_truth).mean():.1f} % right")
    print("the first:", dict(zip(LABELS, model.predict_proba(new)[0].round(2).tolist(), strict=True)))


def drawn(count: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features, labels and speakers; one clip in ten has no transcript."""
    random, world = np.random.default_rng(seed), np.random.default_rng(100)
    truth, speaker = random.integers(3, size=count), random.integers(20, size=count)
    features = {
        name: (0.25 * world.normal(size=(3, width))[truth] + random.normal(size=(count, width))).astype(
            np.float32
        )
        for name, width in (("audio", 40), ("video", 60), ("text", 80))
    }
    features["text"][random.random(count) < 0.1] = np.nan  # a row of NaN: the clip lacks this set
    return features, truth, speaker


if __name__ == "__main__":
    main()
