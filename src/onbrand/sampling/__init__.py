"""From a prior to pictures: start (x_start -> `latents=`), sample (a seed per picture), manifest (make one again)."""
