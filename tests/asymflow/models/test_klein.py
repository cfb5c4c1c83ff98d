from asymflow.models import klein
from asymflow.models.latent import family_of


def test_a_folder_is_of_the_family_that_its_index_names(tiny_base):
    assert family_of(tiny_base) is klein.FAMILY
    assert all((tiny_base / part).is_dir() for part in (*klein.FAMILY.image_parts, *klein.FAMILY.text_parts))
