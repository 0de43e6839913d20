"""The metadata of an image: two texts, in the chunks of a PNG, or in the EXIF and the XMP of others.

`parameters`  the text that AUTOMATIC1111's web UI writes and most viewers can read:

    a lighthouse
    Negative prompt: blurry
    Steps: 50, Sampler: DDIM, CFG scale: 9.0, Seed: 42, Size: 512x512, Model hash: 0123456789, ...

`ldm`         one JSON object with everything needed to make the image again, see `ldm.jobs.record`.

No date is stored: the same command gives the same bytes.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, unescape

from PIL import Image, PngImagePlugin

from ldm.errors import InputError
from ldm.files.reading import no_file

# The web UI's names of samplers and schedules; others keep our name.
SAMPLER_LABELS = {
    "ddim": "DDIM", "plms": "PLMS", "dpm": "DPM++ 2M", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun",
    "lms": "LMS", "lcm": "LCM",
}  # fmt: skip
SCHEDULE_LABELS = {"karras": "Karras", "exponential": "Exponential"}

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
XMP_START = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:ldm="urn:ldm:record"><ldm:record>'
)
XMP_END = "</ldm:record></rdf:Description></rdf:RDF></x:xmpmeta>"
# JSON itself escapes those below U+0020
NOT_IN_XML = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def png_chunks(record: dict[str, Any]) -> PngImagePlugin.PngInfo:
    """Return the two text chunks for a record (see `parameters_text` for the keys it reads)."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", parameters_text(record))
    chunks.add_text("ldm", _json(record))
    return chunks


def parameters_text(record: dict[str, Any]) -> str:
    """Write the record as the web UI's `parameters` text; absent values are left out."""
    model, options = record.get("model", {}), record.get("resolved", {})
    hires = options.get("hires")
    fields = {
        "Steps": options.get("steps"),
        "Sampler": SAMPLER_LABELS.get(options.get("sampler", ""), options.get("sampler")),
        "Schedule type": SCHEDULE_LABELS.get(options.get("schedule", "")),
        "CFG scale": options.get("scale"),
        "CFG rescale": options.get("guidance_rescale") or None,
        "Guidance interval": " to ".join(map(str, options.get("guidance_interval") or ())) or None,
        "Dynamic threshold": options.get("dynamic_threshold"),
        "Clip skip": options.get("clip_skip"),
        "Seed": record.get("seed"),
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": (model.get("sha256") or "")[:10] or None,
        "Model": Path(model.get("checkpoint") or "").stem or None,
        "Denoising strength": options.get("hires_strength") if hires else options.get("strength"),
        "Hires upscale": hires,
        "Hires steps": options.get("hires_steps") if hires else None,
        "Hires upscaler": {"latent": "Latent", "pixel": "Bicubic"}[options["hires_mode"]] if hires else None,
        "Eta DDIM" if options.get("sampler") == "ddim" else "Eta": options.get("eta") or None,
        "Batch size": options.get("n_samples"),
        "Batch pos": record.get("index_in_batch"),
        "Version": f"ldm {record['version']}",
    }
    lines = [record["prompt"]]
    if options.get("negative_prompt"):
        lines.append("Negative prompt: " + options["negative_prompt"])
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items() if value is not None))
    return _printable("\n".join(lines))


def exif(record: dict[str, Any]) -> bytes:
    """Return EXIF data with the `parameters` text as UserComment, as the web UI writes it."""
    data = Image.Exif()
    data[EXIF_IFD] = {USER_COMMENT: b"UNICODE\0" + parameters_text(record).encode("utf-16-be")}
    return data.tobytes()


def xmp(record: dict[str, Any]) -> bytes:
    """Return an XMP packet with the record, in UTF-8; what XML cannot hold is escaped as in JSON."""
    text = NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", _json(record, ensure_ascii=False))
    return (XMP_START + escape(text) + XMP_END).encode()


# what a file that this toolkit did not write may raise
BROKEN = (OSError, KeyError, ValueError, RecursionError, SyntaxError, Image.DecompressionBombError)


def read_record(path: str | Path) -> dict[str, Any]:
    """Return the JSON record of an image file. Raises: InputError when the file has none."""
    if what := no_file(path):
        raise InputError(f"{path}: {what}; expected an image file of this toolkit")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            warnings.simplefilter("ignore")  # of other metadata that are damaged
            if image.format == "PNG":
                image.load()  # text chunks may follow the pixels
                text = image.text["ldm"]
            else:
                found = re.search(rb"<ldm:record>(.*?)</ldm:record>", Path(path).read_bytes(), re.DOTALL)
                text = unescape(found[1].decode()) if found else ""
        record = json.loads(text)
        if isinstance(record, dict):
            return record
        raise ValueError("expected an object")
    except BROKEN as error:
        why = "" if isinstance(error, KeyError) else f": {error}"
        raise InputError(f"{path} has no metadata of this toolkit{why}") from error


def _json(record: dict[str, Any], **options: Any) -> str:
    return json.dumps(record, sort_keys=True, default=str, **options)


def _quoted(value: Any) -> str:
    """Return the value as text, quoted as JSON if it would break the comma-separated line."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def _printable(text: str) -> str:
    """Drop NUL and lone surrogates, which PNG text cannot hold; the JSON chunk keeps them, escaped."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode("utf-8")
