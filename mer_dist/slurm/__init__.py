"""The job as a graph on a Slurm cluster, and a Slurm task as a rank."""
