"""The data set and the scripts that the demo models are made with; see docs/DEMO_DATA.md.

    scenes.py       EmojiScenes: batches of composed emoji with captions
    extra_inputs.py the masks, depth maps and small images that conditional models are trained with
    discs.py        Discs: a data set that needs no files, to try a configuration
    clip_training.py  the training of the small CLIP whose text tower the demo models use
    perceptual.py   the perceptual distance that the autoencoder is trained with
    captions.py     captions, in the words of a prompt
    source.py       sprites and words from the npm packages
    make_emoji.py   write the data set           ship_demo.py      put trained models into configs/demo
    unclip_parts.py the frozen parts of unCLIP   fit_preview.py    the colours of previews
"""
