"""What a job will need before it runs: plan, doctor, memory, layouts."""
