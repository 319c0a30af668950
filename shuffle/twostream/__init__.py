"""Two-stream language model: any order, any grouping; the tokens of a group are predicted at once (XLNet's streams).

Read ``model.py`` first. Example::

    from shuffle.twostream.generator import TwoStreamGenerator
    generator = TwoStreamGenerator.from_pretrained(folder, group_size=2)
"""
