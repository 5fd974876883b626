"""First stages: pictures to latents of unit variance and back, and the losses that train them."""
