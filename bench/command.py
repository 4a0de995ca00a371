"""A benchmark as a program: its options, its end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

import psycopg2

import cli
from bench.systems import remove_leftovers


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick", action="store_true", help="one short round: shows that it works, its figures are noise"
    )
    return made


def numbers(text: str) -> list[int]:
    """An argument such as 1,4,16 or 10_000,1_000_000."""
    return [int(part) for part in text.split(",") if part]


def names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(benchmark: Callable[[], None]) -> None:
    """Run a benchmark. SIGTERM ends it as Ctrl-C does: through every `finally`."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        remove_leftovers()
        benchmark()
    except psycopg2.OperationalError as error:
        cli.fail(f"{str(error).strip()}{'' if error.pgcode else '; are the servers up? `make up` starts them'}")
    except AssertionError as error:
        cli.fail(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
