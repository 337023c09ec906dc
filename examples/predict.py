"""New clips, one after the other, through a run folder or a bundle that is loaded once.

::

    python examples/predict.py runs/demo clip.mp4 another.mp4
"""

import sys

import mer_dist as md


def main(model: str, *clips: str) -> None:
    predictor = md.Predictor.load(model)
    for clip in clips:
        told = predictor(clip, explain=True)  # with transcript="…" where what is said is known
        print(
            f"{told.name}: {told.label} ({100 * told.confidence:.0f} %), missing: {', '.join(told.missing) or 'nothing'}"
        )
        for name, own in told.alone.items():
            if own:
                print(f"  {name} alone: {max(own, key=lambda label: own[label])}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 1 else sys.exit(__doc__)
