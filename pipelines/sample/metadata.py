"""What a sampled image says about itself: how it was made, and that it was made."""

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "asymflow"
"""Of the PNG's text that holds the metadata as JSON"""
_XMP_KEY = "XML:com.adobe.xmp"
# IPTC's words for "made by a trained model", which stores, search engines and social networks look for.
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="AsymFlow {version}"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def encode_with_metadata(picture: Image.Image, metadata: Mapping[str, Any], mark: bool) -> bytes:
    """A PNG with its metadata, and with `mark` the XMP statement that a trained model made it."""
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True))
    if mark:
        info.add_itxt(_XMP_KEY, _XMP.format(version=version("asymflow")))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_metadata(png: bytes) -> dict[str, Any]:
    """The metadata of a sampled image. Raises ValueError for an image without."""
    with Image.open(io.BytesIO(png)) as picture:
        text = getattr(picture, "text", {}).get(KEY)
    if text is None:
        raise ValueError(f"the picture has no text {KEY!r}: it was not sampled here, or has been saved anew since")
    return json.loads(text)
