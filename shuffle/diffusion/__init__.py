"""Masked diffusion: a text is denoised block by block, several tokens in each forward pass.

Read ``model.py`` first. Example::

    from shuffle.diffusion.generator import DiffusionGenerator
    generator = DiffusionGenerator.from_pretrained(folder, confidence_threshold=0.9)
"""
