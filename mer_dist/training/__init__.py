"""Fine-tuning under Accelerate and DeepSpeed: the loop, its process group, its checkpoints."""
