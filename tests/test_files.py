"""Folders that are written atomically."""

import threading
import time

import pytest

from relic_jax import files


def test_a_folder_that_threads_still_fill_after_the_error_is_removed(tmp_path):
    """Orbax's threads write files for a moment after it reported an error, and even create the folder again."""

    def fill(folder):
        for index in range(20):
            folder.mkdir(exist_ok=True)
            (folder / str(index)).write_text("late")
            time.sleep(0.02)

    with pytest.raises(OSError, match="disk"), files.new_folder(tmp_path / "out") as folder:
        thread = threading.Thread(target=fill, args=(folder,))
        thread.start()
        raise OSError("disk")
    thread.join()
    assert list(tmp_path.iterdir()) == []
