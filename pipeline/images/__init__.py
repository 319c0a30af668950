"""Images: Token-Shuffle on scikit-learn's digits and photographs, from pixels to ``results/image.csv``.

A rule of ``pipeline/rules/images.smk`` is a module here: ``tokenise``, ``train``, ``generate``, ``score``, ``timing``,
``cost``, ``collect``, ``figures``, ``sheet`` and ``table``.
"""
