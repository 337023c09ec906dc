"""What the words of the report mean, for readers who meet them there for the first time."""

from __future__ import annotations

#: Of the label prior: (term, meaning).
PRIOR_TERMS = (
    (
        "EM",
        (
            "the shares under which the model's probabilities for the unlabelled clips are most likely, "
            "found by expectation-maximisation: guess the shares, correct each clip's probabilities by "
            "them, take the mean as the next guess."
        ),
    ),
    (
        "BBSE",
        (
            "black-box shift estimation: on labelled clips it is known how much probability the model "
            "gives each label when another one is true; the shares are those that, by this, explain "
            "the mean probabilities of the unlabelled clips."
        ),
    ),
    (
        "tried",
        (
            "the shares that a correction would assume: the mean of both estimates, drawn towards the "
            "labelled clips' shares the less the estimates can be told from noise; or those that were "
            "given by hand or probed."
        ),
    ),
    (
        "applied",
        (
            "whether each unlabelled clip's probabilities were multiplied by tried share over "
            "labelled share before it was answered. Four judges are asked in turn, and decided by names "
            "the one that settled it: the floor, the two-sample test, the estimates, and the gate."
        ),
    ),
    (
        "floor",
        (
            "with fewer than 100 labelled or unlabelled clips that tell something, no shares are "
            "estimated; given or probed ones are left to the gate."
        ),
    ),
    (
        "two-sample test",
        (
            "if only the label shares differ, what the model says of the unlabelled clips is a mixture of "
            "what it says of the labelled ones of each label. p is how likely at least so great a misfit "
            "of the best mixture is by chance. Where p is below 0.1 more than the shares differs: no "
            "estimate is applied, and given or probed shares are taken at their word."
        ),
    ),
    (
        "estimates",
        (
            "they are not applied where less than half of their distance from the labelled shares can be told "
            "from noise; given or probed shares are not applied where EM and BBSE find other shares, under "
            "which they would be expected to lower WAF."
        ),
    ),
    (
        "gate",
        (
            "a correction must be expected to raise WAF on labelled clips weighed to have the tried "
            "shares, by more than the doubt about the shares and few clips leave open."
        ),
    ),
    (
        "answered by",
        (
            "with a correction, answers are chosen together so that their expected WAF is greatest, and a "
            "rare label is answered somewhat sooner; without one, each clip gets its most probable label, "
            "and so does every labelled clip, which is never corrected."
        ),
    ),
)
