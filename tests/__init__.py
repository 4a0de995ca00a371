"""The tests: on real servers, in the folders of what they are about."""

import pytest

pytest.register_assert_rewrite("harness")  # before it is imported: its assertions show their values, too
