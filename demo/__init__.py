"""The data set and the scripts that the demo models are made with; see docs/DEMO_DATA.md.

    scenes.py       EmojiScenes: batches of composed emoji with captions
    captions.py     captions, in the words of a prompt
    source.py       sprites and words from the npm packages
    make_emoji.py   write the data set           ship_demo.py      put trained models into configs/demo
    unclip_parts.py the frozen parts of unCLIP   fit_preview.py    the colours of previews
"""
