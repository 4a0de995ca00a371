"""A benchmark as a program: its options, and how it ends."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.systems import remove_leftovers
from cdc import cli

import psycopg2
from confluent_kafka import KafkaException


def parser(doc: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog=f"python -m bench.{Path(sys.argv[0]).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--quick", action="store_true", help="one short round, to see that it works; its figures are noise"
    )
    return result


def numbers(text: str) -> list[int]:
    """Read an argument such as 1,4,16 or 10_000,1_000_000."""
    return [int(part) for part in text.split(",") if part]


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that reads an argument such as mixed,hot."""

    def read(text: str) -> list[str]:
        result = [part for part in text.split(",") if part]
        if not result or not set(result) <= set(known):
            raise argparse.ArgumentTypeError(f"give one or more of {','.join(known)}")
        return result

    return read


def main(benchmark: Callable[[], None]) -> None:
    """Run a benchmark. SIGTERM ends it as Ctrl-C does: through every `finally`."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        remove_leftovers()
        benchmark()
    except psycopg2.OperationalError as error:
        advice = "" if error.pgcode else " Are the servers up? `make up` starts them."
        cli.fail(" ".join(str(error).split()) + advice)
    except KafkaException as error:
        cli.fail(f"Kafka: {error.args[0].str()}. Is it up? `make up` starts it.")
    except AssertionError as error:
        cli.fail(f"FAILED: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
