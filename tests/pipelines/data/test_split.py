import zlib

from pipelines.data.split import is_held_out


def test_the_split_is_a_function_of_the_key_alone():
    assert [is_held_out(f"shard/{i}", 4) for i in range(8)] == [
        zlib.crc32(f"shard/{i}".encode()) % 4 == 0 for i in range(8)
    ]
    assert is_held_out("schön", 1)


def test_about_one_key_in_so_many_is_held_out():
    held_out = sum(is_held_out(f"{i:09}", 20) for i in range(20_000))
    assert abs(held_out - 1000) < 4 * (20_000 * 0.05 * 0.95) ** 0.5  # four standard deviations
