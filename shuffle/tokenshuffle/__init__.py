"""Token-Shuffle: an image is generated window by window, the s x s tokens of a window in one forward pass.

Read ``layers.py`` first, then ``model.py``. Example::

    from shuffle.tokenshuffle.generator import ImageGenerator
    generator = ImageGenerator.from_pretrained(folder, guidance="half_linear", guidance_scale=2.0)
    ids = generator.generate([3, 3, 8])            # [3, H, W], codes of the image tokenizer
"""
