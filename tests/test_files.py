"""Files that several processes use."""

from concurrent.futures import ThreadPoolExecutor

from ddpm_jax.files import file_lock


def test_only_one_at_a_time_has_a_folder_and_nothing_is_left(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def add(_):
        with file_lock(tmp_path):
            count.write_text(str(int(count.read_text()) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert count.read_text() == "200"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]
