"""A source in another encoding than UTF8: its texts arrive, and a byte that is no text sets its own row aside only."""

from __future__ import annotations

import config
from harness.database import administer, query
from harness.pipeline import Pipeline
from harness.producing import published

import pytest

BYTES = {"SQL_ASCII": b"Z\xfcrich", "WIN1252": b"Z\x81rich"}  # not UTF-8; a byte that WIN1252 does not define
TEXT = {"SQL_ASCII": "Zürich".encode(), "WIN1252": "Zürich €".encode("cp1252")}


@pytest.mark.parametrize("encoding", BYTES)
def test_a_byte_that_is_no_text_sets_its_row_aside_and_the_rest_goes_on(bare_pipeline: Pipeline, encoding: str) -> None:
    pipeline = bare_pipeline
    administer(config.SOURCE_DATABASE_URL, f"DROP DATABASE {pipeline.name}")
    create = f"CREATE DATABASE {pipeline.name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    administer(config.SOURCE_DATABASE_URL, create)
    pipeline.set_up()
    source = pipeline.source()
    insert = f"INSERT INTO employees (city) VALUES (convert_from(%s, '{encoding}'))"
    query(source, insert, (TEXT[encoding],))
    query(source, insert, (BYTES[encoding],))
    query(source, "INSERT INTO employees (city) VALUES ('Rome')")
    result = pipeline.run("producer.py", "--once")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "INSERT employee 2, log offset 2 → dead letter: a byte that is no text" in result.stdout
    assert "published 2 changes in all" in result.stdout
    cities = {record.emp_id: record.city for record in published(pipeline)}
    assert cities == {1: TEXT[encoding].decode("utf-8" if encoding == "SQL_ASCII" else "cp1252"), 3: "Rome"}
    (letter,) = pipeline.dead_letters()
    assert BYTES[encoding] in (letter.value() or b"")
