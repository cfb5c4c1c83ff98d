"""Image metadata: how an image was sampled, and that a model generated it."""

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "asymflow"
"""PNG text key of the metadata, which are JSON"""
_XMP_KEY = "XML:com.adobe.xmp"
# IPTC's terms for "generated" and "edited by a trained model", which search engines and social networks look for.
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="AsymFlow {version}"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source}"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def encode_with_metadata(image: Image.Image, metadata: Mapping[str, Any], mark: bool, edited: bool = False) -> bytes:
    """Return a PNG with metadata and, if `mark`, the XMP statement that a model generated it, or `edited` an image."""
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(dict(metadata), ensure_ascii=False, sort_keys=True))
    if mark:
        source = "compositeWithTrainedAlgorithmicMedia" if edited else "trainedAlgorithmicMedia"
        info.add_itxt(_XMP_KEY, _XMP.format(version=version("asymflow"), source=source))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_metadata(png: bytes) -> dict[str, Any]:
    """Return the metadata of a sampled image. Raises ValueError for an image without metadata."""
    with Image.open(io.BytesIO(png)) as image:
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise ValueError(f"the image has no PNG text {KEY!r}: it was not sampled here, or was saved by another program")
    return json.loads(text)
