from pipelines.core.text_table import format_table


def test_columns_are_as_wide_as_their_longest_cell():
    assert format_table([("a", "long", ""), ("bbb", "c", "dd")]) == "a    long\nbbb  c     dd"
