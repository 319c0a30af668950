"""FasterDecodeMixer: ShuffleLM's heads on a frozen language model, as a drafter or on their own (design.md 3.2).

Example::

    from shuffle.fasterdecodemixer.model import FasterDecodeMixer           # the heads
    from shuffle.fasterdecodemixer.drafter import MixerDrafter              # verified: lossless
    from shuffle.fasterdecodemixer.generator import MixerGenerator          # with the model that they read; also raw
"""
