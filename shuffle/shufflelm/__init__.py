"""ShuffleLM: a set of tokens and their positions in one pass, then put in order.

Read ``model.py`` first. Example::

    from shuffle.shufflelm.model import ShuffleLM
    model = ShuffleLM.from_pretrained(folder)
"""
