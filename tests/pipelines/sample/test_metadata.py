import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from pipelines.data.images import encode_png
from pipelines.sample.metadata import encode_with_metadata, read_metadata

PICTURE = Image.linear_gradient("L").convert("RGB").resize((64, 48))
METADATA = {"prompt": 'ein Füchslein — \u2603 "quoted"', "seed": 3, "shift": 3.6, "interval": [0.0, 1.0]}


def test_metadata_and_pixels_come_back():
    png = encode_with_metadata(PICTURE, METADATA, mark=True)
    assert read_metadata(png) == METADATA
    assert Image.open(io.BytesIO(png)).tobytes() == PICTURE.tobytes()
    assert encode_with_metadata(PICTURE, METADATA, mark=True) == png


def test_the_mark_is_the_iptc_term():
    with Image.open(io.BytesIO(encode_with_metadata(PICTURE, METADATA, mark=True))) as marked:
        xmp = ElementTree.fromstring(marked.info["xmp"].decode().split("?>", 1)[1].rsplit("<?", 1)[0])
    found = {name.rpartition("}")[2]: value for element in xmp.iter() for name, value in element.attrib.items()}
    assert found["DigitalSourceType"].endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    assert found["CreatorTool"].startswith("AsymFlow ")
    with Image.open(io.BytesIO(encode_with_metadata(PICTURE, METADATA, mark=False))) as plain:
        assert "xmp" not in plain.info
        assert plain.text.keys() == {"asymflow"}


def test_other_images_have_no_metadata():
    with pytest.raises(ValueError, match="it was not sampled here"):
        read_metadata(encode_png(PICTURE))
