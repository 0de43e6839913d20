"""From prompts to the contexts of the UNet.

    text -> Prompt            plain.py, a1111.py, compel.py: fragments with weights, breaks, clauses
    Prompt -> chunks          chunks.py: token ids of the encoder's length, with a weight for every token
    chunks -> contexts        encoding.py: the encoder's states, weighted, padded to one length
    one text -> many          combinations.py: expands {red|green} and __colour__, before all of the above

Nothing here depends on a model: any object with the members of `encoding.TextTower` is an encoder.
"""
