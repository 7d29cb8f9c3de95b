"""The only room that knows diffusers, transformers, peft: pipelines, schedulers, what learns, checkpoints."""
