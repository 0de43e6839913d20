"""From what people write to what a text encoder is given.

    text -> Prompt            plain.py, a1111.py, compel.py: fragments with weights, breaks, clauses
    Prompt -> chunks          chunks.py: token ids of the encoder's length, a weight for every token
    chunks -> contexts        encoding.py: the encoder's states, weighted, prompts of one length
    one text -> many          combinations.py: {red|green} and __colour__, before any of this

The parts know no model: an encoder is whatever has the members of `encoding.TextTower`.
"""
