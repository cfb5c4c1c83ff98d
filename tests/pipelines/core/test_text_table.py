from pipelines.core.text_table import aligned


def test_columns_are_as_wide_as_their_longest_cell():
    assert aligned([("a", "long", ""), ("bbb", "c", "dd")]) == "a    long\nbbb  c     dd"
