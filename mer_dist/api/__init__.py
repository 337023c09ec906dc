"""What ``import mer_dist`` offers to programs and notebooks: stages, results, a classifier of features."""
