"""From a prior to images: the start, the sampler, one seed an image, a manifest to make any of them again."""
