"""Definitions of the report's terms, for readers who are new to them."""

from __future__ import annotations

#: Terms of the result table: (term, meaning).
RESULT_TERMS = (
    (
        "WAF",
        (
            "weighted average F1: the F1 of each label, weighted by its share of the truth. F1 is the harmonic "
            "mean of precision and recall."
        ),
    ),
    (
        "out of fold",
        (
            "the labelled clips are split into folds; every clip is predicted by models that never trained on "
            "its fold, so that its label is no help to them."
        ),
    ),
    ("95 %", "the bootstrap interval: the range of the score over 1,000 random redraws of the n clips."),
    (
        "logistic regression",
        "the linear probes: a baseline on one feature set, on all side by side, or stacked on the others.",
    ),
    (
        "round",
        (
            "one training of the fusion model; from round 1 on also on pseudo-labels, which are labels that the "
            "round before predicted for unlabelled clips."
        ),
    ),
    ("vote", "all rounds and baselines together, weighted by their out-of-fold predictions."),
)

#: Terms of the confusion.
CONFUSION_TERMS = (
    ("precision", "of the clips that got this answer, the part whose label it is."),
    ("recall", "of the clips with this label, the part that got it as their answer."),
    ("F1", "the harmonic mean of both; WAF is its mean over labels, weighted by their clips."),
)

#: Terms of the clips.
CLIP_TERMS = (
    ("confident", "said of an answer to which the model gives a high probability."),
    (
        "entropy",
        "how evenly the probabilities spread over the labels; highest where every label is as likely.",
    ),
    (
        "Jensen–Shannon divergence",
        (
            "how far the modalities' probabilities are apart: the entropy of their mean less the mean of their "
            "entropies; 0 where all agree."
        ),
    ),
    ("teacher", "an outside labeller whose answers were imported with mer-dist import-answers."),
)

#: Terms of the label prior.
PRIOR_TERMS = (
    (
        "EM",
        (
            "the shares under which the model's probabilities for the unlabelled clips are most likely, "
            "by expectation-maximisation: guess the shares, correct each clip's probabilities with "
            "them, take the mean as the next guess."
        ),
    ),
    (
        "BBSE",
        (
            "black-box shift estimation: labelled clips show how much probability the model gives each "
            "label when another one is true; the estimated shares explain, with these errors, the mean "
            "probabilities of the unlabelled clips."
        ),
    ),
    (
        "tried",
        (
            "the shares that a correction would assume: the mean of both estimates, shrunk towards the "
            "labelled clips' shares, the more so the noisier the estimates are; or those that the user "
            "gave or probed."
        ),
    ),
    (
        "applied",
        (
            "whether each unlabelled clip's probabilities were multiplied by tried share over labelled "
            "share before the decision. There are four checks in this order: floor, two-sample test, "
            'estimates, gate; "decided by" is the one that decided.'
        ),
    ),
    (
        "floor",
        (
            "with fewer than 100 labelled or unlabelled clips that have features, no shares are "
            "estimated; only the gate checks given or probed ones."
        ),
    ),
    (
        "two-sample test",
        (
            "if only the label shares differ, the predictions of the unlabelled clips are a mixture of "
            "those of the labelled clips of each label. p is the probability of at least this misfit of "
            "the best mixture by chance. Where p is below 0.1 more than the shares differs: no estimate "
            "is applied, and given or probed shares are trusted."
        ),
    ),
    (
        "estimates",
        (
            "they are not applied where less than half of their distance from the labelled shares exceeds "
            "noise; given or probed shares are not applied where EM and BBSE find other shares, under "
            "which they are expected to lower WAF."
        ),
    ),
    (
        "gate",
        (
            "a correction must be expected to raise WAF on labelled clips weighted to the tried shares, "
            "by more than the uncertainty of the shares and of a few clips."
        ),
    ),
    (
        "answered by",
        (
            "with a correction, answers are chosen together to maximise their expected WAF, and a rare "
            "label is chosen somewhat more often; without one, each clip gets its most probable label, "
            "and so does every labelled clip, which is never corrected."
        ),
    ),
)
