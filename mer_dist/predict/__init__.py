"""New clips through what a run learned: its models, bundles of them, and predictions."""
