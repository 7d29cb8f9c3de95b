"""The only floor that knows diffusers and transformers: schedule (any scheduler) and bundle (load, save, encode)."""
